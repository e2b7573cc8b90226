"""What the studies beside this file share: their small setting, cells that are computed once, and tables.

Tasks are small, so that a study costs hours on two CPU cores, not days: 100 training examples, at most 100 to pick settings by,
200 to test on (CLUTRR and TruthfulQA, whose prompts are three times as long as the others' or more: 50, 50 and 200). Whatever a
study computes is a cell, one JSON file, and is skipped when that file exists: a study can be stopped and started at any time,
and several processes can work on different parts.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats

import lofit_lens as ll
from lofit_lens.files import write_text_atomically
from lofit_lens.interventions import Adapter
from lofit_lens.lens import LensModel
from lofit_lens.markdown import markdown_table
from lofit_lens.statistics import mean_interval
from lofit_lens.tasks import Task

SIZES = {"n_train": 100, "n_val": 100, "n_test": 200}
TASKS: dict[str, Task] = {
    "kinship": ll.tasks.Kinship(**SIZES),
    "counterfactual": ll.tasks.Counterfactual(**SIZES),
    "truth": ll.tasks.Truth(**SIZES),
    "mquake": ll.tasks.MQuAKE(n_train=100, n_test=200),  # 95 validation questions are all that there are
    "clutrr": ll.tasks.CLUTRR(seed=42, n_train=50, n_val=50, n_test=200),
    "truthfulqa": ll.tasks.TruthfulQA(fold=0, n_train=50, n_val=50, n_test=200),
}
#: Step 1's settings are those of `figures/paper_tasks`; nothing here tunes them.
LOFIT = ll.methods.LoFiT(scale_lr=1e-2, l1=1e-3)


def stored(path: Path, made_of: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in that file, computed and written if it is not there.

    Raises:
        ValueError: the file was made of other settings than these.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps({"made_of": made_of, **compute()}))
        logging.info("%s is done", path.stem)
    found = json.loads(path.read_text())
    if found["made_of"] != json.loads(json.dumps(made_of)):
        raise ValueError(f"{path} was made of {found['made_of']}, wanted {made_of}; delete it, and it is made again")
    return found


def made_of(task: Task, methods: Sequence[ll.methods.Method], seed: int) -> dict[str, Any]:
    """What decides a cell."""
    return {"task": task.settings(), "methods": [method.settings() for method in methods], "seed": seed}


def known(words: Sequence[str], *choices: Iterable[str]) -> list[str]:
    """The words, each of which must be a choice.

    Raises:
        ValueError: says which is not.
    """
    wanted = [choice for group in choices for choice in group]
    for word in words:
        if word not in wanted:
            raise ValueError(f"got {word!r}, wanted some of {', '.join(wanted)}")
    return list(words)


def lofit_scores(model: LensModel, task: Task, seed: int, path: Path) -> tuple[ll.HeadScores, float]:
    """LoFiT's first step, kept in that file, and its processor seconds."""

    def select() -> dict[str, Any]:
        start = time.process_time()
        scores = LOFIT.select(model, task, seed=seed)
        return {"scores": scores.values.tolist(), "seconds": time.process_time() - start}

    found = stored(path, made_of(task, [LOFIT], seed), select)
    return scores_of(found, task), found["seconds"]


def scores_of(cell: Mapping[str, Any], task: Task) -> ll.HeadScores:
    """Of a cell that `lofit_scores` has kept for that kind of task."""
    (settings,), made = cell["made_of"]["methods"], cell["made_of"]
    made_by = {"method": "LoFiT", "task": task.name, "task_settings": made["task"], "seed": made["seed"], "settings": settings}
    return ll.HeadScores(torch.tensor(cell["scores"]), "norm of the learned scaling", made_by)


def best_of(model: LensModel, task: Task, methods: Sequence[ll.methods.Method], seed: int) -> tuple[Adapter, dict[str, Any]]:
    """The fit that does best on the validation split (of equal ones, the first; a lone one is not asked), and what a cell
    keeps of it: which one it is, processor seconds of all, what they scored, and every outcome on the test split.
    """
    adapters, trials = [], []
    for method in methods:
        start = time.process_time()
        adapters.append(method.fit(model, task, seed=seed).intervention)
        trials.append({"settings": method.settings(), "seconds": time.process_time() - start})
    if len(methods) > 1:
        for adapter, trial in zip(adapters, trials, strict=True):
            trial["val"] = ll.evaluate(model, task, adapter, split="val").value
    chosen = max(range(len(trials)), key=lambda i: (trials[i].get("val", 0.0), -i))
    found = {"chosen": chosen, "trials": trials, "test": ll.evaluate(model, task, adapters[chosen]).to_json()}
    return adapters[chosen], found


def paired(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    """Mean difference in the task's metric between cells of the same seeds, its 95 % interval and two-sided p.

    An example's difference is its mean over seeds, so that examples are what is drawn: BCa bootstrap, and a permutation test
    that swaps the two sides of an example (10,000 draws).
    """

    def outcomes(of: Sequence[Mapping[str, Any]]) -> list[float]:
        per_seed = [one["test"]["scores"][one["test"]["metric"]] for one in of]
        return [sum(example) / len(example) for example in zip(*per_seed, strict=True)]

    ours, theirs = outcomes(cells), outcomes(others)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / len(differences)
    test = stats.permutation_test(
        (ours, theirs),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=0,
    )
    return mean, *mean_interval(differences), float(test.pvalue)


def interval_text(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def write_table(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """As CSV and as Markdown, and on the screen."""
    write_text_atomically(folder / f"{name}.csv", frame.to_csv(index=False))
    write_text_atomically(folder / f"{name}.md", markdown_table(frame))
    print(frame.to_string(index=False))
