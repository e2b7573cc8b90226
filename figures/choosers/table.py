"""Which ways to choose heads are worth it: what has come out of `study.toml` here and of `figures/transfer-gemma/study.toml`.

What a way is worth shows in its runs, all of which are judged by the same test examples. Each model and task is a stratum, with
the way's runs (one for each seed; for other tasks' heads, for each of them too) and those of heads drawn blindly (uniformly,
and as many per layer); the statistic is the mean over strata of the difference in means, and the test permutes runs within
strata (20,000 draws, one-sided: better than blind). Over ways p goes through Benjamini and Hochberg. Beside it is the same next
to uniformly drawn heads alone, uncorrected, and both again for each model. What such a test finds four times in five
("detectable") is a true difference of 1.64 + 0.84 standard errors, those of runs around the mean of their group. Random heads
in the layers of a task's own are a way themselves: they know its layers, and not its heads. Strata are independent, as random
heads are drawn anew for every task, but for "another task's": one set of heads is in all tasks but its own, so that p of that
way is too small if a set is good or bad for all. (Gradients, too, choose the same heads, or nearly, on two tasks of SmolLM2.)

    python -m figures.choosers.table STORE      # written to table.* and summary.* beside this file
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from scipy import stats

import lofit_lens as ll
from figures.studies import write_table
from lofit_lens.comparison import false_discovery_rates

FIGURES = Path(__file__).parents[1]
FILES = ("choosers", "transfer-gemma")
#: What knows nothing of the task.
BLIND = ("random", "random-per-layer")
#: Of the permutation test.
DRAWS = 20_000
#: Of that test, and of what it could have found.
ALPHA, POWER = 0.05, 0.8


def cells(studies: Iterable[ll.Study], store: ll.RunStore) -> pd.DataFrame:
    """A row for each run: `model`, `task`, `way`, `value`, and the share of its heads that are the task's own.

    A way of which runs are missing at a model and task is left out there.
    """
    rows = []
    for study in studies:
        wanted = [cell for cell in study.cells() if cell.method is not None]
        done = ll.study.runs(study, store)
        incomplete = {(cell.model, cell.task, way_of(cell)) for cell in wanted if cell not in done}
        runs = {cell: done[cell] for cell in wanted if (cell.model, cell.task, way_of(cell)) not in incomplete}
        own = {(cell.model, cell.task, cell.seed): heads_of(run) for cell, run in runs.items() if way_of(cell) == "own"}
        for cell, run in runs.items():
            shared = own.get((cell.model, cell.task, cell.seed), set()) & heads_of(run)
            of_run = {"metric": run.evaluation.metric, "n": run.evaluation.n, "value": run.evaluation.value}
            rows.append({**cell.labels, "way": way_of(cell), **of_run, "shared": len(shared) / len(heads_of(run))})
    return pd.DataFrame(rows)


def way_of(cell: ll.study.Cell) -> str:
    if cell.method != "lofit":
        return str(cell.method)
    return str(cell.heads) if cell.heads in ll.study.HEAD_SOURCES else "another task's"


def heads_of(run: ll.runs.Run) -> set[ll.Head]:
    assert run.fit is not None
    assert isinstance(run.fit.intervention, ll.HeadIntervention)
    return set(run.fit.intervention.heads)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each model, task and way."""
    rows = []
    for (model, task, way), own in runs.groupby(["model", "task", "way"], sort=False):
        values = own["value"].tolist()
        rows.append(
            {
                "model": model,
                "task": task,
                "heads chosen by": way,
                "metric": own["metric"].iloc[0],
                "n": own["n"].iloc[0],
                "runs": len(values),
                "mean": round(fmean(values), 3),
                "from": round(min(values), 3),
                "to": round(max(values), 3),
                "shared with own": round(own["shared"].mean(), 2),
            }
        )
    return pd.DataFrame(rows)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each way: how much better than blind heads, over all tasks where both have come out; of all models together,
    then of each.
    """
    groups = {"all": runs, **dict(tuple(runs.groupby("model", sort=False)))} if runs["model"].nunique() > 1 else {"all": runs}
    return pd.concat([_summary_of(models, group) for models, group in groups.items()], ignore_index=True).round(4)


def _summary_of(models: str, runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for way in dict.fromkeys(runs["way"]):
        if way not in BLIND and (strata := _strata(runs, way, BLIND)):
            uniform = against_blind(_strata(runs, way, ("random",)))
            row = {"models": models, "heads chosen by": way, "strata": len(strata), **against_blind(strata), "q": 0.0}
            rows.append({**row, "more than random by": uniform["more than blind by"], "p, random alone": uniform["p"]})
    for row, q in zip(rows, false_discovery_rates([row["p"] for row in rows]) if rows else (), strict=True):
        row["q"] = float(q)
    return pd.DataFrame(rows)


def _strata(runs: pd.DataFrame, way: str, blind_ways: tuple[str, ...]) -> list[tuple[list[float], list[float]]]:
    found = []
    for _, of_place in runs.groupby(["model", "task"], sort=False):
        ours, blind = of_place[of_place["way"] == way], of_place[of_place["way"].isin(blind_ways)]
        if len(ours) and set(blind["way"]) == set(blind_ways):
            found.append((ours["value"].tolist(), blind["value"].tolist()))
    return found


def against_blind(strata: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    """Mean difference over strata, the one-sided p of a permutation test within them, and what it finds with a power of 0.8."""
    generator = np.random.default_rng(0)
    observed, drawn, variance = 0.0, np.zeros(DRAWS), 0.0
    for ours, blind in strata:
        runs, k = np.array([*ours, *blind]), len(ours)
        spread = (np.var(ours) * k + np.var(blind) * len(blind)) / (len(runs) - 2)
        variance += spread * (1 / k + 1 / len(blind)) / len(strata) ** 2
        observed += (runs[:k].mean() - runs[k:].mean()) / len(strata)
        shuffled = generator.permuted(np.tile(runs, (DRAWS, 1)), axis=1)
        drawn += (shuffled[:, :k].mean(1) - shuffled[:, k:].mean(1)) / len(strata)
    # The small amount is for sums that differ by rounding only.
    p = (1 + (drawn >= observed - 1e-12).sum()) / (1 + DRAWS)
    detectable = (stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER)) * np.sqrt(variance)
    return {"more than blind by": float(observed), "p": float(p), "detectable": float(detectable)}


def main() -> None:
    studies = [ll.Study.from_file(FIGURES / name / "study.toml") for name in FILES]
    runs = cells(studies, ll.RunStore(sys.argv[1]))
    write_table(table(runs), Path(__file__).parent, "table")
    write_table(summary(runs), Path(__file__).parent, "summary")


if __name__ == "__main__":
    main()
