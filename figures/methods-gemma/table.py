"""What has come out of `study.toml`: every method at every size, next to LoFiT at 10 % of heads on the same examples.

Tests are the paper's, two-sided: about these fits, over test questions, seeds paired; q is p after Benjamini and Hochberg over
the table.

    python -m figures.methods-gemma.table STORE      # written to table.csv and table.md beside this file
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

import lofit_lens as ll
from figures.studies import interval_text, write_table
from lofit_lens.comparison import false_discovery_rates, paired_difference
from lofit_lens.runs import Run
from lofit_lens.study import Cell, runs

HERE = Path(__file__).parent
#: The share of heads at which LoFiT is what all others are compared with.
SHARE = 0.1


def table(study: ll.Study, store: ll.RunStore) -> pd.DataFrame:
    """A row for each task, method and size."""
    groups: dict[Cell, list[Run]] = {}
    for cell, run in runs(study, store).items():
        groups.setdefault(replace(cell, seed=None), []).append(run)
    rows, tested = [], []
    for cell, found in groups.items():
        rows.append(described(cell, found))
        reference = groups.get(Cell(cell.model, cell.task, "lofit", "own", SHARE, cell.n_train), [])
        if reference is not found and len(reference) == len(found):  # both are through; the bare model has no size
            difference = paired_difference(outcomes(reference), outcomes(found), new_seeds=False)
            rows[-1] |= {"less than LoFiT by": interval_text(difference.mean, difference.low, difference.high)}
            rows[-1] |= {"p": difference.p}
            tested.append(rows[-1])
    for row, q in zip(tested, false_discovery_rates([row["p"] for row in tested]) if tested else (), strict=True):
        row |= {"p": f"{row['p']:.4f}", "q": f"{q:.4f}"}
    return pd.DataFrame(rows).fillna("")


def described(cell: Cell, found: list[Run]) -> dict[str, object]:
    tests = [run.evaluation for run in found]
    return {
        "task": cell.task,
        "examples": cell.n_train or "",
        "method": cell.method or "no edit",
        "heads": "" if cell.k is None else f"{cell.k:.0%}",
        "metric": tests[0].metric,
        "n": tests[0].n,
        "seeds": len(tests),
        "mean": round(sum(test.value for test in tests) / len(tests), 3),
        "each seed's 95 % interval": "; ".join(interval_text(test.value, *test.interval()) for test in tests),
        "numbers in the edit": 0 if found[0].fit is None else found[0].fit.intervention.n_parameters,
    }


def outcomes(found: list[Run]) -> list[tuple[float, ...]]:
    """[seed, example]."""
    return [run.evaluation.scores[run.evaluation.metric] for run in found]


def main() -> None:
    study = ll.Study.from_file(HERE / "study.toml")
    write_table(table(study, ll.RunStore(sys.argv[1])), HERE, "table")


if __name__ == "__main__":
    main()
