"""Ways to choose heads, put to the test: the same second step of LoFiT on the heads that each one chooses.

SmolLM2-135M-Instruct and Gemma 3 270M (dequantised, float32), the sizes of `figures/studies.py`, seeds 0, 1 and 2. Eight heads:
3 % of SmolLM2's 270, 11 % of Gemma's 72; few, because the choice matters less where many are learned. A seed decides the
choice (where anything in it is random) and the second step. Its learning rate is the one of two that scores better on the
validation split with seed 0, for every choice of heads, so that no chooser suffers from another's rate.

Random heads come in three kinds, nine draws in all. What a chooser is worth shows in the runs, not in the examples of one run:
its three runs are held against the nine random ones by an exact Mann-Whitney test.

    python -m figures.choosers.study                             # run what is missing
    python -m figures.choosers.study gemma-3-270m kinship        # only this model and task; several can run side by side
    python -m figures.choosers.study table                       # what has come out, also written to table.csv and table.md
"""

import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

import lofit_lens as ll
from figures.studies import LOFIT, TASKS, best_of, lofit_scores, stored, write_table
from lofit_lens.heads import Head
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.tasks import Task

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
K = 8
RATES = (1e-2, 5e-2)
#: Gemma on the tasks that cost least.
TASKS_OF = {
    "smollm2-135m-instruct": ("mquake", "counterfactual", "kinship", "truth", "clutrr", "truthfulqa"),
    "gemma-3-270m": ("mquake", "counterfactual", "kinship", "truth"),
}


@dataclass(frozen=True)
class Setting:
    """What a choice of heads is made for."""

    model: LensModel
    model_name: str
    task_name: str

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    @property
    def all_heads(self) -> Sequence[tuple[int, int]]:
        return check_model(self.model).all_heads

    def lofit(self, seed: int) -> ll.HeadScores:
        return lofit_scores(self.model, self.model_name, self.task_name, seed)[0]

    def another_tasks(self, seed: int) -> ll.HeadScores:
        """LoFiT's scores for the next task in the list, so that every task lends and borrows once."""
        names = TASKS_OF[self.model_name]
        other = names[(names.index(self.task_name) + 1) % len(names)]
        return lofit_scores(self.model, self.model_name, other, seed)[0]

    def gradient(self, measure: Any) -> ll.HeadScores:
        return ll.selection.gradient_scores(self.model, self.task, measure=measure)

    def greedy(self) -> ll.HeadScores:
        return ll.selection.greedy_gradient_scores(self.model, self.task, k=K)

    def lofit_with(self, seed: int, **settings: Any) -> ll.HeadScores:
        return replace(LOFIT, **settings).select(self.model, self.task, seed=seed)[0]


WAYS: dict[str, Callable[[Setting, int], tuple[Head, ...]]] = {
    "random": lambda s, seed: ll.random_heads(K, s.all_heads, seed),
    "random, as many per layer": lambda s, seed: ll.random_heads(K, s.all_heads, seed, equal_per_layer=True),
    "random, in LoFiT's layers": lambda s, seed: ll.random_heads_like(s.lofit(seed).top(K), s.all_heads, seed),
    "LoFiT": lambda s, seed: s.lofit(seed).top(K),
    "greedy gradient": lambda s, seed: s.greedy().top(K),
    "ITI probes": lambda s, seed: ll.methods.ITI().select(s.model, s.task, seed=seed).top(K),
    "another task's LoFiT": lambda s, seed: s.another_tasks(seed).top(K),
    "LoFiT, layers take turns": lambda s, seed: ll.selection.spread_over_layers(s.lofit(seed)).top(K),
    "LoFiT, group-sparse": lambda s, seed: s.lofit_with(seed, penalised="heads").top(K),
    "bias-based": lambda s, seed: s.lofit_with(seed, select_by="offset").top(K),
    "gradient": lambda s, seed: s.gradient("norm").top(K),
    "gradient against noise": lambda s, seed: s.gradient("fisher").top(K),
    "probe-layers": lambda s, seed: ll.selection.layer_probe_scores(s.model, s.task, seed=seed).top(K),
}
RANDOM = tuple(way for way in WAYS if way.startswith("random"))
#: Ways that choose the same heads with every seed.
SEEDLESS = ("greedy gradient", "gradient", "gradient against noise")


def run(setting: Setting) -> None:
    for way in WAYS:
        rates = RATES
        for seed in SEEDS:
            path = cell_path(setting.model_name, setting.task_name, way, seed)
            cell = stored(path, lambda: judged(setting, way, rates, seed))  # noqa: B023 - called at once
            if seed == 0:
                rates = (RATES[cell["chosen"]],)


def judged(setting: Setting, way: str, rates: tuple[float, ...], seed: int) -> dict[str, Any]:
    heads = chosen_heads(setting, way, 0 if way in SEEDLESS else seed)
    methods = [replace(LOFIT, heads=heads, offset_lr=rate) for rate in rates]
    return best_of(setting.model, setting.task, methods, seed)[1]


def chosen_heads(setting: Setting, way: str, seed: int) -> tuple[Head, ...]:
    """Kept apart from what is learned there: a choice may cost more than the fit."""
    path = RESULTS / "heads" / cell_path(setting.model_name, setting.task_name, way, seed).name
    found = stored(path, lambda: {"heads": [list(head) for head in WAYS[way](setting, seed)]})
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
    paths = [cell_path(model_name, task_name, way, seed) for seed in SEEDS]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _row(way: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    values = [cell["test"]["value"] for cell in found[way]]
    random = [cell["test"]["value"] for kind in RANDOM for cell in found[kind]]
    row = {
        "heads chosen by": way,
        "metric": found[way][0]["test"]["metric"],
        "n": found[way][0]["test"]["n"],
        "mean": round(statistics.fmean(values), 3),
        "each seed": "; ".join(f"{value:.3f}" for value in values),
        "more than random by": "",
        "p (U test)": "",
        "heads shared with LoFiT": round(statistics.fmean(map(_shared, found[way], found["LoFiT"])), 2),
        "step 2 rate": f"{RATES[found[way][0]['chosen']]:g}",
    }
    if way not in RANDOM and len(values) == len(SEEDS) and len(random) == len(SEEDS) * len(RANDOM):
        p = stats.mannwhitneyu(values, random, alternative="two-sided", method="exact").pvalue
        row |= {"more than random by": f"{statistics.fmean(values) - statistics.fmean(random):+.3f}", "p (U test)": f"{p:.3f}"}
    return row


def _shared(cell: dict[str, Any], other: dict[str, Any]) -> float:
    """|A and B| / k."""
    ours, theirs = (set(map(tuple, one["trials"][0]["settings"]["heads"])) for one in (cell, other))
    return len(ours & theirs) / K


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if sys.argv[1:] == ["table"]:
        write_table(table(), RESULTS.parent, "table")
        return
    wanted = set(sys.argv[1:])
    for model_name, task_names in TASKS_OF.items():
        if wanted.isdisjoint(TASKS_OF) or model_name in wanted:
            model = ll.load_model(model_name, accept_license={"gemma"})
            for task_name in task_names:
                if wanted.isdisjoint(TASKS) or task_name in wanted:
                    run(Setting(model, model_name, task_name))


if __name__ == "__main__":
    main()
