"""Every method on six tasks, side by side: what it learns, what that costs, and what it changes elsewhere.

SmolLM2-135M-Instruct (dequantised, float32), the sizes of `figures/studies.py`, seeds 0 and 1, five epochs in batches of 8
for whatever is trained (JoLA ten, as many as LoFiT's two steps together). Two values of what matters most to a method, about
a factor of five apart, are tried with seed 0; the validation split picks one, and both seeds use it. Beyond that budgets
differ as the methods do: LoFiT trains twice (5 + 5 epochs) and keeps 10 % of the heads, JoLA's gates have a rate and a
penalty that close some of them within so few steps, RepE also chooses a layer by 25 validation examples, zero-shot has
nothing to choose. TruthfulQA is always asked behind the published instruction and six examples, which "zero-shot" has too,
and few-shot examples stand in front of.

What an edit costs elsewhere is measured on 50 ARC-Challenge test questions with their right answers, text that no task here
has, read once by the bare model and once under each edit of a task. LoReFT edits prompts only, and to it a text's first token
is the prompt. Tests pair the same test examples under a method and under LoFiT, given the two fits of each; q is p after
Benjamini and Hochberg over the whole table. How many numbers an edit has is the mean of its fits: JoLA's gates decide it anew
in each.

    python -m figures.methods.study                     # run what is missing
    python -m figures.methods.study kinship mquake      # only these tasks; several can run side by side
    python -m figures.methods.study table               # what has come out, also written to table.csv and table.md
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from scipy import stats

import lofit_lens as ll
from figures.studies import LOFIT, TASKS, best_of, interval_text, known, lofit_scores, made_of, paired, stored, write_table
from lofit_lens.lens import LensModel
from lofit_lens.methods import ITI, RED, BitFit, FewShot, JoLA, LoFiT, LoRA, LoReFT, Method, RepE
from lofit_lens.side_effects import side_effects_of_each

RESULTS = Path(__file__).parent / "results"
MODEL = "smollm2-135m-instruct"
SEEDS = (0, 1)
#: Nothing of a zero-shot prompt depends on the seed.
SEEDS_OF = {"zero-shot": (0,)}
TEXTS = ll.tasks.ARCChallenge(n_test=50)
#: What the candidates of a method differ in.
VARIED = ("n_examples", "offset_lr", "alpha", "learning_rate")
#: Tasks whose right and wrong answers are what RepE's reading vector tells apart (as in the LoFiT paper).
TOLD_APART = ("truth", "truthfulqa")


def candidates(task_name: str) -> dict[str, tuple[Method, ...]]:
    """Every method in the settings that validation picks from."""
    vector = "reading" if task_name in TOLD_APART else "contrast"
    return {
        "zero-shot": (FewShot(n_examples=0),),
        "few-shot": (FewShot(n_examples=2), FewShot(n_examples=8)),
        "LoFiT": tuple(replace(LOFIT, offset_lr=rate) for rate in (1e-2, 5e-2)),
        "ITI": tuple(ITI(k=0.1, alpha=alpha) for alpha in (3.0, 15.0)),
        "RepE": tuple(RepE(vector=vector, alpha=alpha, n_val=25) for alpha in (2.0, 10.0)),
        "RED": tuple(RED(learning_rate=rate) for rate in (5e-3, 2e-2)),
        "BitFit": tuple(BitFit(learning_rate=rate) for rate in (2e-3, 1e-2)),
        "JoLA": tuple(JoLA(learning_rate=rate, gate_lr=0.3, penalty=1e-2) for rate in (5e-3, 2e-2)),
        "LoRA": tuple(LoRA(learning_rate=rate) for rate in (1e-3, 5e-3)),
        "LoReFT": tuple(LoReFT(learning_rate=rate) for rate in (1e-3, 5e-3)),
    }


def run(model: LensModel, task_name: str, texts: list[str]) -> None:
    for name, methods in candidates(task_name).items():
        chosen = methods
        for seed in SEEDS_OF.get(name, SEEDS):
            made = made_of(TASKS[task_name], chosen, seed)
            path = cell_path(task_name, name, seed)
            cell = stored(path, made, lambda: judged(model, task_name, name, chosen, seed))  # noqa: B023 - called at once
            if seed == 0:
                chosen = (methods[cell["chosen"]],)
    costs(model, task_name, texts)


def cell_path(task_name: str, method_name: str, seed: int) -> Path:
    return RESULTS / f"{task_name}-{method_name}-seed{seed}.json"


def scores_path(task_name: str, seed: int) -> Path:
    return RESULTS / "scores" / f"{task_name}-seed{seed}.json"


def adapter_path(task_name: str, method_name: str, seed: int) -> Path:
    return RESULTS / "adapters" / f"{task_name}-{method_name}-seed{seed}"


def costs(model: LensModel, task_name: str, texts: list[str]) -> dict[str, Any]:
    """What each edit of a task changes elsewhere, all behind one reading of the texts by the bare model."""
    paths = cell_paths(task_name)

    def measure() -> dict[str, Any]:
        edits = [ll.load_adapter(adapter_path(task_name, *fit), model) for fit in paths]
        means = [of_edit.summary()["mean"].to_dict() for of_edit in side_effects_of_each(model, edits, texts)]
        return {"costs": {path.stem: mean for path, mean in zip(paths.values(), means, strict=True)}}

    return stored(costs_path(task_name), costs_made_of(task_name), measure)["costs"]


def costs_made_of(task_name: str) -> dict[str, Any]:
    """The texts, and the fits that there are, whose edits are measured."""
    there = {path.stem: json.loads(path.read_text()) for path in cell_paths(task_name).values() if path.exists()}
    fits = {name: {**cell["made_of"], "methods": [_chosen(cell)["settings"]]} for name, cell in there.items()}
    return {"texts": TEXTS.settings(), "fits": fits}


def cell_paths(task_name: str) -> dict[tuple[str, int], Path]:
    """Where all cells of a task are, by method and seed."""
    fits = [(name, seed) for name in candidates(task_name) for seed in SEEDS_OF.get(name, SEEDS)]
    return {(name, seed): cell_path(task_name, name, seed) for name, seed in fits}


def costs_path(task_name: str) -> Path:
    return RESULTS / "costs" / f"{task_name}.json"


def judged(model: LensModel, task_name: str, method_name: str, methods: tuple[Method, ...], seed: int) -> dict[str, Any]:
    """The best of these, whose edit is kept."""
    selection_seconds = 0.0
    if isinstance(methods[0], LoFiT):
        scores, selection_seconds = lofit_scores(model, TASKS[task_name], seed, scores_path(task_name, seed))
        methods = tuple(replace(method, heads=scores.top(method.k)) for method in methods)
    adapter, found = best_of(model, TASKS[task_name], methods, seed)
    adapter.save(adapter_path(task_name, method_name, seed), model, overwrite=True)
    return found | {"n_parameters": adapter.n_parameters, "selection_seconds": selection_seconds}


def table() -> pd.DataFrame:
    """A row for each task and method that has come out."""
    rows = []
    for task_name in TASKS:
        lofit = cells(task_name, "LoFiT")
        for name in candidates(task_name):
            if found := cells(task_name, name):
                rows.append({"task": task_name, "method": name, **_row(task_name, name, found, lofit)})
    tested = [row for row in rows if row["p"] != ""]
    for row, q in zip(tested, stats.false_discovery_control([row["p"] for row in tested]) if tested else (), strict=True):
        row |= {"p": f"{row['p']:.4f}", "q": f"{q:.4f}"}
    return pd.DataFrame(rows)


def cells(task_name: str, method_name: str) -> list[dict[str, Any]]:
    """The cells of all seeds, or none if one is missing."""
    paths = [cell_path(task_name, method_name, seed) for seed in SEEDS_OF.get(method_name, SEEDS)]
    return [json.loads(path.read_text()) for path in paths] if all(path.exists() for path in paths) else []


def _row(task_name: str, name: str, found: list[dict[str, Any]], lofit: list[dict[str, Any]]) -> dict[str, Any]:
    tests = [ll.Evaluation.from_json(cell["test"]) for cell in found]
    picked = _chosen(found[0])
    row = {
        "metric": tests[0].metric,
        "n": tests[0].n,
        "seeds": len(tests),
        "mean": round(sum(test.value for test in tests) / len(tests), 3),
        "each seed's 95 % interval": "; ".join(interval_text(test.value, *test.interval()) for test in tests),
        "less than LoFiT by": "",
        "p": "",
        "q": "",
        "numbers in the edit": round(fmean(cell["n_parameters"] for cell in found)),
        "processor seconds of a fit": round(fmean(cell["selection_seconds"] + _chosen(cell)["seconds"] for cell in found)),
        **_costs_row(task_name, name),
        "picked": ", ".join(f"{key} {picked['settings'][key]:g}" for key in VARIED if _is_varied(found[0], key))
        + (" (tied)" if _is_tied(found[0]) else ""),
    }
    if lofit and name != "LoFiT":
        # A method without seeds is compared with every seed of LoFiT.
        ours = found if len(found) == len(lofit) else found[:1] * len(lofit)
        mean, low, high, p = paired(lofit, ours)
        row |= {"less than LoFiT by": interval_text(mean, low, high), "p": p}
    return row


def _costs_row(task_name: str, method_name: str) -> dict[str, Any]:
    """Nothing where the edits that were measured are not those of today's cells."""
    measured = json.loads(path.read_text()) if (path := costs_path(task_name)).exists() else None
    if measured is None or measured["made_of"] != costs_made_of(task_name):
        return {"rise in cross-entropy": "", "KL": ""}
    found = [measured["costs"][cell_path(task_name, method_name, seed).stem] for seed in SEEDS_OF.get(method_name, SEEDS)]
    return {
        "rise in cross-entropy": round(fmean(costs["rise_in_cross_entropy"] for costs in found), 3),
        "KL": round(fmean(costs["kl"] for costs in found), 3),
    }


def _is_varied(cell: dict[str, Any], key: str) -> bool:
    return len({trial["settings"].get(key) for trial in cell["trials"]}) > 1


def _is_tied(cell: dict[str, Any]) -> bool:
    """Whether validation saw no difference, so that the first of the grid stands there."""
    return [trial.get("val") for trial in cell["trials"]].count(_chosen(cell).get("val")) > 1


def _chosen(cell: dict[str, Any]) -> dict[str, Any]:
    return cell["trials"][cell["chosen"]]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if sys.argv[1:] == ["table"]:
        write_table(table(), RESULTS.parent, "table")
        return
    parts = known(sys.argv[1:], TASKS) or TASKS
    model = ll.load_model(MODEL)
    texts = [f"{one.prompt}{one.answer}" for one in TEXTS.test]
    for task_name in parts:
        run(model, task_name, texts)


if __name__ == "__main__":
    main()
