"""Ways to choose heads, put to the test: the same second step of LoFiT on the heads that each one chooses.

SmolLM2-135M-Instruct and Gemma 3 270M (dequantised, float32), seeds 0, 1 and 2. Eight heads: 3 % of SmolLM2's 270, 11 % of
Gemma's 72; few, because the choice matters less where many are learned. 50 training and 50 validation examples (Kinship, which
eight heads learn nothing of from 50: 100), 200 to test on (TruthfulQA: 100). A seed decides the choice (where anything in it is
random) and the second step. For every set of heads its learning rate is the one of two that scores better on the validation
split, so that no choice suffers from another's rate. Both models have all ways to choose on three tasks; SmolLM2 has some of
them on three more, which cost most.

What a chooser is worth shows in its runs, all of which are judged by the same test examples. Each model and task is a stratum,
with the chooser's three runs and the six of heads drawn blindly (uniformly, and as many per layer); the statistic is the mean
over strata of the difference in means, and the test permutes runs within strata (20,000 draws, one-sided: better than random).
Over choosers p goes through Benjamini and Hochberg. Random heads in LoFiT's layers are a chooser themselves: they know LoFiT's
layers, and not its heads.

    python -m figures.choosers.study                             # run what is missing
    python -m figures.choosers.study gemma-3-270m truth          # only this model and task; several can run side by side
    python -m figures.choosers.study table                       # what has come out, also written to table.* and summary.*
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import lofit_lens as ll
from figures.studies import LOFIT, best_of, known, lofit_scores, made_of, stored, write_table
from lofit_lens.heads import Head
from lofit_lens.lens import LensModel
from lofit_lens.selection import spread_over_layers
from lofit_lens.tasks import Task

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
K = 8
RATES = (3e-2, 1e-1)
#: Of the permutation test.
DRAWS = 20_000
SIZES = {"n_train": 50, "n_val": 50, "n_test": 200}
TASKS: dict[str, Task] = {
    "counterfactual": ll.tasks.Counterfactual(**SIZES),
    "truth": ll.tasks.Truth(**SIZES),
    "mquake": ll.tasks.MQuAKE(**SIZES),
    "kinship": ll.tasks.Kinship(n_train=100, n_val=50, n_test=200),
    "clutrr": ll.tasks.CLUTRR(seed=42, **SIZES),
    "truthfulqa": ll.tasks.TruthfulQA(fold=0, n_train=50, n_val=50, n_test=100),
}
CHEAP = ("counterfactual", "truth", "mquake")
TASKS_OF = {"smollm2-135m-instruct": tuple(TASKS), "gemma-3-270m": CHEAP}


@dataclass(frozen=True)
class Setting:
    """What a choice of heads is made for."""

    model: LensModel
    model_name: str
    task_name: str

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    def lofit(self, seed: int) -> ll.HeadScores:
        return self._lofit_on(self.task_name, seed)

    def _lofit_on(self, task_name: str, seed: int) -> ll.HeadScores:
        path = RESULTS / "scores" / f"{self.model_name}-{task_name}-seed{seed}.json"
        return lofit_scores(self.model, TASKS[task_name], seed, path)[0]

    def another_tasks(self, seed: int) -> ll.HeadScores:
        """LoFiT's scores for the next task in the list, so that every task lends and borrows once."""
        names = TASKS_OF[self.model_name]
        other = names[(names.index(self.task_name) + 1) % len(names)]
        return self._lofit_on(other, seed)

    def gradient(self) -> ll.HeadScores:
        return ll.selection.gradient_scores(self.model, self.task, measure="fisher")

    def greedy(self) -> ll.HeadScores:
        return ll.selection.greedy_gradient_scores(self.model, self.task, k=K)

    def lofit_with(self, seed: int, **settings: Any) -> ll.HeadScores:
        return replace(LOFIT, **settings).select(self.model, self.task, seed=seed)


WAYS: dict[str, Callable[[Setting, int], ll.HeadScores]] = {
    "random": lambda s, seed: ll.random_scores(s.model, seed=seed),
    "random, as many per layer": lambda s, seed: spread_over_layers(ll.random_scores(s.model, seed=seed)),
    "random, in LoFiT's layers": lambda s, seed: ll.random_scores(s.model, seed=seed, like=s.lofit(seed).top(K)),
    "LoFiT": lambda s, seed: s.lofit(seed),
    "greedy gradient": lambda s, seed: s.greedy(),
    "ITI probes": lambda s, seed: ll.methods.ITI().select(s.model, s.task, seed=seed),
    "another task's LoFiT": lambda s, seed: s.another_tasks(seed),
    "LoFiT, layers take turns": lambda s, seed: spread_over_layers(s.lofit(seed)),
    "LoFiT, group-sparse": lambda s, seed: s.lofit_with(seed, penalised="heads"),
    "bias-based": lambda s, seed: s.lofit_with(seed, select_by="offset"),
    "gradient against noise": lambda s, seed: s.gradient(),
    "probe-layers": lambda s, seed: ll.selection.layer_probe_scores(s.model, s.task, seed=seed),
}
#: What knows nothing of the task.
BLIND = ("random", "random, as many per layer")
#: Ways that choose the same heads with every seed.
SEEDLESS = ("greedy gradient", "gradient against noise")
MAIN_WAYS = (*BLIND, "random, in LoFiT's layers", "LoFiT", "greedy gradient", "ITI probes")


def run(setting: Setting) -> None:
    has_all_ways = setting.model_name == "smollm2-135m-instruct" and setting.task_name in CHEAP
    for way in WAYS if has_all_ways else MAIN_WAYS:
        for seed in SEEDS:
            heads = chosen_heads(setting, way, 0 if way in SEEDLESS else seed)
            methods = [replace(LOFIT, heads=heads, offset_lr=rate) for rate in RATES]
            path = cell_path(setting.model_name, setting.task_name, way, seed)
            made = made_of(setting.task, methods, seed)
            stored(path, made, lambda: best_of(setting.model, setting.task, methods, seed)[1])  # noqa: B023 - called at once


def chosen_heads(setting: Setting, way: str, seed: int) -> tuple[Head, ...]:
    """Kept apart from what is learned there: a choice may cost more than the fit."""
    path = RESULTS / "heads" / cell_path(setting.model_name, setting.task_name, way, seed).name
    made = made_of(setting.task, [LOFIT], seed) | {"way": way, "k": K}
    found = stored(path, made, lambda: {"heads": [list(head) for head in WAYS[way](setting, seed).top(K)]})
    return tuple(Head(*head) for head in found["heads"])


def cell_path(model_name: str, task_name: str, way: str, seed: int) -> Path:
    return RESULTS / f"{model_name}-{task_name}-{way}-seed{seed}.json"


def table() -> pd.DataFrame:
    """A row for each model, task and way to choose that has come out."""
    rows = []
    for model_name, task_names in TASKS_OF.items():
        for task_name in task_names:
            found = {way: cells(model_name, task_name, way) for way in WAYS}
            rows += [{"model": model_name, "task": task_name, **_row(way, found)} for way in WAYS if found[way]]
    return pd.DataFrame(rows)


def cells(model_name: str, task_name: str, way: str) -> list[dict[str, Any]]:
    """The cells of all seeds, or none if one is missing."""
    paths = [cell_path(model_name, task_name, way, seed) for seed in SEEDS]
    return [json.loads(path.read_text()) for path in paths] if all(path.exists() for path in paths) else []


def _row(way: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    values = [cell["test"]["value"] for cell in found[way]]
    return {
        "heads chosen by": way,
        "metric": found[way][0]["test"]["metric"],
        "n": found[way][0]["test"]["n"],
        "mean": round(fmean(values), 3),
        "each seed": "; ".join(f"{value:.3f}" for value in values),
        "heads shared with LoFiT": round(fmean(map(_shared, found[way], found["LoFiT"])), 2) if found["LoFiT"] else "",
        "step 2 rates": "; ".join(f"{RATES[cell['chosen']]:g}" for cell in found[way]),
    }


def summary() -> pd.DataFrame:
    """A row for each way to choose: how much better than blind heads over all models and tasks where both have come out."""
    rows = []
    for way in WAYS:
        if way not in BLIND and (strata := _strata(way)):
            rows.append({"heads chosen by": way, "strata": len(strata), **_against_blind(strata)})
    for row, q in zip(rows, stats.false_discovery_control([row["p"] for row in rows]) if rows else (), strict=True):
        row["q"] = round(float(q), 4)
    return pd.DataFrame(rows)


def _strata(way: str) -> list[tuple[list[float], list[float]]]:
    """For each model and task, the test values of the way's runs and of the blind ones."""
    found = []
    for model_name, task_names in TASKS_OF.items():
        for task_name in task_names:
            ours, *blind = (cells(model_name, task_name, name) for name in (way, *BLIND))
            if ours and all(blind):
                pools = [cell["test"]["value"] for cell in ours], [cell["test"]["value"] for kind in blind for cell in kind]
                found.append(pools)
    return found


def _against_blind(strata: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    """Mean difference over strata, and the one-sided p of a permutation test within them."""
    generator = np.random.default_rng(0)
    observed, drawn = 0.0, np.zeros(DRAWS)
    for ours, blind in strata:
        runs, k = np.array([*ours, *blind]), len(ours)
        observed += (runs[:k].mean() - runs[k:].mean()) / len(strata)
        shuffled = generator.permuted(np.tile(runs, (DRAWS, 1)), axis=1)
        drawn += (shuffled[:, :k].mean(1) - shuffled[:, k:].mean(1)) / len(strata)
    # The small amount is for sums that differ by rounding only.
    p = (1 + (drawn >= observed - 1e-12).sum()) / (1 + DRAWS)
    return {"more than blind by": round(observed, 4), "p": round(float(p), 4)}


def _shared(cell: dict[str, Any], other: dict[str, Any]) -> float:
    """|A and B| / k."""
    ours, theirs = (set(map(tuple, one["trials"][0]["settings"]["heads"])) for one in (cell, other))
    return len(ours & theirs) / K


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if sys.argv[1:] == ["table"]:
        write_table(table(), RESULTS.parent, "table")
        write_table(summary(), RESULTS.parent, "summary")
        return
    wanted = set(known(sys.argv[1:], TASKS_OF, TASKS))
    for model_name, task_names in TASKS_OF.items():
        if wanted.isdisjoint(TASKS_OF) or model_name in wanted:
            model = ll.load_model(model_name, accept_license={"gemma"})
            for task_name in task_names:
                if wanted.isdisjoint(TASKS) or task_name in wanted:
                    run(Setting(model, model_name, task_name))


if __name__ == "__main__":
    main()
