"""What two small models score on every task that is here offline, and what LoFiT at 3 % and 10 % of heads makes of one.

SmolLM2-135M-Instruct and Gemma 3 270M (both dequantised), float32. LoFiT on SmolLM2: TruthfulQA (both folds, 200 training
questions each), MQuAKE (all 134) and CLUTRR (300 stories), seeds 0 and 1; step 1 at learning rate 1e-2 with l1 1e-3, both
steps 5 epochs in batches of 8. The learning rate of step 2 is the one of two that scores better on the validation split with
seed 0 (TruthfulQA: fold 0's), for each task and share of heads.

Each cell writes one JSON file beside this script and is skipped when that file exists, so the study can be stopped and
started at any time. About three hours on two cores.

    python -m figures.paper_tasks.study                       # run what is missing
    python -m figures.paper_tasks.study base mquake           # only these parts; several can run side by side
    python -m figures.paper_tasks.study table                 # what has come out, also written to table.csv and table.md
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import lofit_lens as ll
from figures.studies import write_table
from lofit_lens.files import write_text_atomically
from lofit_lens.lens import LensModel
from lofit_lens.tasks import Task
from lofit_lens.tasks.base import Metric

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
SHARES = (0.03, 0.1)
OFFSET_RATES = (1e-2, 5e-2)
SEEDS = (0, 1)
#: Test questions of the tasks that are not trained on.
QUESTIONS = 300
LOFIT = ll.methods.LoFiT(scale_lr=1e-2, l1=1e-3)

#: To train on: the tasks of the paper whose data are at hand.
TRAINED: dict[str, tuple[Task, ...]] = {
    "truthfulqa": tuple(ll.tasks.TruthfulQA(fold=fold, n_train=200) for fold in (0, 1)),
    "mquake": (ll.tasks.MQuAKE(),),
    "clutrr": (ll.tasks.CLUTRR(seed=42, n_val=200),),
}
UNTRAINED: dict[str, tuple[Task, ...]] = {
    "social_iqa": (ll.tasks.SocialIQA(n_test=QUESTIONS),),
    "arc_challenge": (ll.tasks.ARCChallenge(n_test=QUESTIONS),),
    "svamp": (ll.tasks.SVAMP(n_test=QUESTIONS),),
    "kinship": (ll.tasks.Kinship(n_test=QUESTIONS),),
    "counterfactual": (ll.tasks.Counterfactual(n_test=QUESTIONS),),
    "truth": (ll.tasks.Truth(n_test=QUESTIONS),),
    "ioi": (ll.tasks.IOI(n_test=QUESTIONS),),
}
#: What the paper judges by the option that is generated, also judged by the options' likelihood.
BOTH_WAYS = ("social_iqa", "arc_challenge")


def cell(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The stored result of that name, computed if there is none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        write_text_atomically(path, json.dumps(compute()))
        logging.info("%s is done", name)
    return json.loads(path.read_text())


def run_base() -> None:
    for name in MODELS:
        model = None
        for task_name, parts in {**TRAINED, **UNTRAINED}.items():
            for metric in (None, "mc1") if task_name in BOTH_WAYS else (None,):
                found = f"base-{name}-{task_name}" + (f"-{metric}" if metric else "")
                if not (RESULTS / f"{found}.json").exists():
                    model = model or ll.load_model(name, accept_license={"gemma"})
                    outcome = evaluated(model, parts, [None] * len(parts), metric)
                    cell(found, lambda outcome=outcome: outcome)


def evaluated(
    model: LensModel, parts: tuple[Task, ...], interventions: list[Any], metric: Metric | None = None
) -> dict[str, Any]:
    found = [ll.evaluate(model, part, made, metric=metric) for part, made in zip(parts, interventions, strict=True)]
    return {"test": ll.Evaluation.pooled(found).to_json(), "chance": sum(p.chance for p in parts) / len(parts)}


def run_lofit(task_name: str) -> None:
    model = ll.load_model(MODELS[0])
    for seed in SEEDS:
        for share in SHARES:
            rate = chosen_rate(model, task_name, share)
            name = f"lofit-{task_name}-{share:g}-seed{seed}"
            if not (RESULTS / f"{name}.json").exists():
                parts = TRAINED[task_name]
                fits = [fitted(model, task_name, part, share, rate, seed) for part in range(len(parts))]
                cell(name, lambda parts=parts, fits=fits, rate=rate: {"offset_lr": rate, **evaluated(model, parts, fits)})


def chosen_rate(model: LensModel, task_name: str, share: float) -> float:
    """The learning rate of step 2 with the best validation score; of equal ones, the smaller."""

    def score(rate: float) -> float:
        def validate() -> dict[str, Any]:
            made = fitted(model, task_name, 0, share, rate, seed=0)
            return {"val": ll.evaluate(model, TRAINED[task_name][0], made, split="val").to_json()}

        return cell(f"grid-{task_name}-{share:g}-lr{rate:g}", validate)["val"]["value"]

    return max(OFFSET_RATES, key=lambda rate: (score(rate), -rate))


def fitted(model: LensModel, task_name: str, part: int, share: float, rate: float, seed: int) -> ll.HeadIntervention:
    """Step 2 on the share of heads that step 1 ranks highest."""
    folder = RESULTS / "adapters" / f"{task_name}-{part}-{share:g}-lr{rate:g}-seed{seed}"
    if not folder.exists():
        heads = scores(model, task_name, part, seed).top(share)
        method = ll.methods.LoFiT(heads=heads, offset_lr=rate)
        method.fit(model, TRAINED[task_name][part], seed=seed).intervention.save(folder, model)
        logging.info("%s is fitted", folder.name)
    return ll.HeadIntervention.load(folder, model)


def scores(model: LensModel, task_name: str, part: int, seed: int) -> ll.HeadScores:
    def select() -> dict[str, Any]:
        return {"scores": LOFIT.select(model, TRAINED[task_name][part], seed=seed).values.tolist()}

    return ll.HeadScores(torch.tensor(cell(f"scores-{task_name}-{part}-seed{seed}", select)["scores"]))


def table() -> pd.DataFrame:
    """A row for each model, task, metric and setting that has come out: its mean over seeds, each seed's interval, chance."""
    rows = []
    for name in MODELS:
        for task_name in (*TRAINED, *UNTRAINED):
            rows += _rows(name, task_name, "base", [f"base-{name}-{task_name}"])
            if task_name in BOTH_WAYS:
                rows += _rows(name, task_name, "base, by likelihood", [f"base-{name}-{task_name}-mc1"])
            if name == MODELS[0] and task_name in TRAINED:
                for share in SHARES:
                    cells = [f"lofit-{task_name}-{share:g}-seed{seed}" for seed in SEEDS]
                    rows += _rows(name, task_name, f"LoFiT, {share:.0%} of heads", cells)
    return pd.DataFrame(rows)


def _rows(model: str, task_name: str, setting: str, cells: list[str]) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for name in cells if (path := RESULTS / f"{name}.json").exists()]
    rows = []
    for metric in found[0]["test"]["scores"] if found else ():
        if metric != "margin" and not (metric in ("mc2", "mc3") and task_name in BOTH_WAYS):
            of_seeds = [ll.Evaluation.from_json(one["test"]) for one in found]
            rows.append(
                {
                    "model": model,
                    "task": task_name,
                    "setting": setting,
                    "metric": metric,
                    "n": of_seeds[0].n,
                    "seeds": len(of_seeds) if "LoFiT" in setting else "",
                    "value": round(sum(part.mean(metric) for part in of_seeds) / len(of_seeds), 3),
                    "95 % interval of each": "; ".join(
                        f"{part.mean(metric):.3f} [{low:.3f}, {high:.3f}]"
                        for part in of_seeds
                        for low, high in [part.interval(metric)]
                    ),
                    "chance": round(found[0]["chance"], 3) if metric in ("mc1", "exact_match") else "",
                    "step 2 rate": f"{found[0]['offset_lr']:g}" if "offset_lr" in found[0] else "",
                }
            )
    return rows


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RESULTS.mkdir(exist_ok=True)
    if sys.argv[1:] == ["table"]:
        write_table(table(), HERE, "table")
        return
    for part in sys.argv[1:] or ("base", *TRAINED):
        if part == "base":
            run_base()
        else:
            run_lofit(part)


if __name__ == "__main__":
    main()
