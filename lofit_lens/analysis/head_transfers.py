"""What heads that were chosen elsewhere do for a task, next to the task's own (LoFiT, arXiv 2406.01563, section 6, Figure 2).

Every task learns its offsets on heads from several sources: on its own, on other tasks', on random ones. All cells of a task
share seeds and test examples, so that each is compared with the task's own heads, the diagonal, pair by pair:

    relative    mean(cell) / mean(own)          `comparison.relative_effect`
    difference  mean(cell - own)                `comparison.paired_difference`

Marks are the paper's: `*` where a cell is lower than own at p < 0.05 and `+` at p < 0.1. The p is one-sided, against "less", as
the paper marks lower cells only; it does not say. Its paired bootstrap is what `new_seeds=False` does. q is that p after
Benjamini and Hochberg over all cells that are compared, of all tasks. For new seeds and with three to five of them it is no
more than a guide: a q < 0.05 comes up by chance somewhere in up to 46 % of such matrices (`crossed` has the numbers). That of
`new_seeds=False` knows no variance between seeds, which is what so few show badly; it is about these fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lofit_lens.comparison import false_discovery_rates, paired_difference, relative_effect
from lofit_lens.latex import escaped
from lofit_lens.outcomes import Evaluation

#: The source that is no heads at all: the model without an edit, for reference, which is not tested.
BASE = "base"
#: What a cell is marked with, and below which p.
MARKS = {"*": 0.05, "+": 0.1}

BySeed = Mapping[int, Evaluation]


def row_of(source: str) -> str:
    """What a study's source of heads that is no task is called as a row: "ITI", "random per layer"."""
    return "ITI" if source == "iti" else source.replace("-", " ")


_UNCOMPARED = {
    **dict.fromkeys(("relative", "relative_low", "relative_high"), np.nan),
    **dict.fromkeys(("difference", "difference_low", "difference_high", "detectable"), np.nan),
    **dict.fromkeys(("p_less", "p_two_sided"), np.nan),
}


@dataclass(frozen=True)
class HeadTransfer:
    """Tasks (targets) that were learned on heads from several sources, each compared with learning on the task's own.

    Args:
        sources: rows, in order: tasks, and whatever else chose heads ("random", "ITI"); "base" is the model without an edit.
        targets: columns, in order: tasks. The own heads of a target are the source of the same name.
        cells: a row for each source and target that is there, with the columns `source`, `target`, `metric`, `n_examples`,
            `n_seeds`; `value`, the mean over seeds and examples in [0, 1], and its 95 % interval `low`, `high`; `relative` to
            own heads (1 is as good), with `relative_low` and `relative_high`, NaN where any ratio is possible; `difference`
            from own heads, in [-1, 1], with `difference_low`, `difference_high` and `detectable`, the smallest true difference
            that is found with power 0.8 at two-sided alpha 0.05; `p_less` and `p_two_sided` of no difference; `q_less`, of
            `p_less`; `mark`. What compares is NaN where the target's own heads are missing, and for own heads themselves,
            whose `relative` is 1; p and q are NaN for "base" too.
        new_seeds: whether all this is about new seeds too, where there are several, and not about these fits alone.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    cells: pd.DataFrame
    new_seeds: bool = True

    def to_frame(self) -> pd.DataFrame:
        """The cells."""
        return self.cells.copy()

    def matrix(self, column: str = "value") -> pd.DataFrame:
        """One column of the cells, sources by targets; NaN where there is no cell.

        Raises:
            ValueError: no such column.
        """
        columns = [name for name in self.cells.columns if name not in ("source", "target")]
        if column not in columns:
            raise ValueError(f"got the column {column!r}, wanted one of {', '.join(columns)}")
        square = self.cells.pivot(index="source", columns="target", values=column)
        return square.reindex(index=list(self.sources), columns=list(self.targets))

    @property
    def metrics(self) -> dict[str, str]:
        """Of each target."""
        found = dict(zip(self.cells["target"], self.cells["metric"], strict=True))
        return {target: found[target] for target in self.targets}

    @property
    def note(self) -> str:
        """What marks mean, for below a figure or a table."""
        levels = " and ".join(f"{mark} (p < {level})" for mark, level in MARKS.items())
        with_seeds = self.new_seeds and bool((self.cells["n_seeds"] > 1).any())
        test = "paired over examples and seeds" if with_seeds else "paired bootstrap over examples, about these fits"
        base = f" {BASE}: the model without an edit, not tested." if BASE in self.sources else ""
        return f"{levels}: lower than on the task's own heads, {test}, one-sided, not corrected for the number of cells.{base}"

    def to_latex(self) -> str:
        r"""A table to paste into a paper, which needs `\usepackage{booktabs}`: values in percent with marks, intervals below.

        Rows are sources, columns are targets, own heads are bold; the caption says of how many examples and seeds, and `note`.
        """
        head = ["Heads of", *map(escaped, self.targets)]
        metrics = ["", *(escaped(metric.replace("_", " ")) for metric in self.metrics.values())]
        cells = {(row["source"], row["target"]): row for row in self.cells.to_dict("records")}
        body: list[str] = []
        for source in self.sources:
            of_source = [cells.get((source, target)) for target in self.targets]
            body.append(" & ".join([escaped(source), *map(_latex_value, of_source)]) + r" \\")
            body.append(" & ".join(["", *map(_latex_interval, of_source)]) + r" \\")
        caption = (
            "Tasks (columns) learned on heads of several sources (rows): mean over seeds in percent, with its 95 % interval. "
            f"Bold: the task's own heads. {self.note} {self._counts()}"
        )
        return "\n".join(
            [
                r"\begin{table}[t]",
                r"\centering",
                rf"\caption{{{escaped(caption)}}}",
                rf"\begin{{tabular}}{{l{'c' * len(self.targets)}}}",
                r"\toprule",
                " & ".join(head) + r" \\",
                " & ".join(metrics) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def _counts(self) -> str:
        """Examples and seeds of each target, said once where they are the same."""
        columns = zip(self.cells["target"], self.cells["n_examples"], self.cells["n_seeds"], strict=True)
        counts = {target: f"n = {n}, {seeds} seed{'s' * (seeds != 1)}" for target, n, seeds in columns}
        if len(set(counts.values())) == 1:
            return f"Examples: {counts[self.targets[0]]}."
        return f"Examples: {'; '.join(f'{target} {counts[target]}' for target in self.targets)}."


def _latex_value(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "--"
    value = f"{100 * row['value']:.1f}"
    mark = f"$^{{{row['mark']}}}$" if row["mark"] else ""
    return rf"\textbf{{{value}}}" if row["source"] == row["target"] else f"{value}{mark}"


def _latex_interval(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else rf"{{\scriptsize [{100 * row['low']:.1f}, {100 * row['high']:.1f}]}}"


def head_transfer(
    evaluations: Mapping[tuple[str, str], BySeed],
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    new_seeds: bool = True,
) -> HeadTransfer:
    """Compare what targets learn on the heads of several sources with what they learn on their own.

    Args:
        evaluations: for each (source, target), the evaluation under each seed; a target's own heads are at (target, target).
            Cells may be missing. What has no seeds, such as ("base", target), is repeated for each.
        sources: rows, in order.
        targets: columns, in order.
        new_seeds: say what new seeds would give, where there are several; otherwise all is about these fits, as in the paper's
            paired bootstrap.

    Raises:
        ValueError: a source or a target without any cell; or a cell of other seeds or other examples than the target's own
            heads, with which it could not be compared.
    """
    wanted = [(source, target) for source in sources for target in targets if evaluations.get((source, target))]
    for kind, names, found in (("source", sources, {s for s, _ in wanted}), ("target", targets, {t for _, t in wanted})):
        if not names or not found.issuperset(names):
            raise ValueError(
                f"got the {kind}s {list(names)}, of which {sorted(found)} have evaluations; wanted at least one, each with a "
                "cell or more: leave the others out"
            )
    rows = []
    for source, target in wanted:
        cell, own = evaluations[source, target], evaluations.get((target, target))
        _refuse_unlike(f"the heads of {source!r} for {target!r}", cell, own or cell)
        compared = _compared(cell, own, new_seeds) if own and source != target else _UNCOMPARED
        rows.append({"source": source, "target": target, **_summary(cell, new_seeds), **compared})
    cells = pd.DataFrame(rows)
    cells.loc[cells["source"] == cells["target"], "relative"] = 1.0
    cells.loc[cells["source"] == BASE, ["p_less", "p_two_sided"]] = np.nan
    cells["q_less"] = false_discovery_rates(cells["p_less"])
    cells["mark"] = [next((mark for mark, level in MARKS.items() if p < level), "") for p in cells["p_less"]]
    return HeadTransfer(tuple(sources), tuple(targets), cells, new_seeds)


def _refuse_unlike(whose: str, cell: BySeed, own: BySeed) -> None:
    examples = [
        {found.task: {"split": found.split, "metric": found.metric, "n": found.n, **found.task_settings}}
        for found in (*own.values(), *cell.values())
    ]
    if set(cell) != set(own):
        raise ValueError(
            f"got the seeds {sorted(cell)} of {whose}, wanted {sorted(own)}, those of its own heads; evaluate the missing "
            "ones, or leave out what only one of the two has"
        )
    if unlike := [other for other in examples if other != examples[0]]:
        raise ValueError(
            f"got {whose} on the examples {unlike[0]}, wanted those of its own heads, {examples[0]}; evaluate both on the same "
            "examples, or leave the cell out"
        )


def _outcomes(cell: BySeed) -> NDArray[Any]:
    """[seed, example], ascending seeds."""
    return np.array([cell[seed].scores[cell[seed].metric] for seed in sorted(cell)])


def _summary(cell: BySeed, new_seeds: bool) -> dict[str, Any]:
    first, outcomes = next(iter(cell.values())), _outcomes(cell)
    value, (low, high) = float(outcomes.mean()), first.interval()
    if (outcomes != outcomes[0]).any():  # otherwise seeds add nothing, and the evaluation knows its metric's own interval
        found = paired_difference(outcomes, np.zeros_like(outcomes), new_seeds=new_seeds)
        low, high = max(found.low, 0.0), min(found.high, 1.0)
    n_seeds, n_examples = outcomes.shape
    counts = {"n_examples": n_examples, "n_seeds": n_seeds}
    return {"metric": first.metric, **counts, "value": value, "low": low, "high": high}


def _compared(cell: BySeed, own: BySeed, new_seeds: bool) -> dict[str, float]:
    ours, theirs = _outcomes(cell), _outcomes(own)
    ratio = relative_effect(ours, theirs, new_seeds=new_seeds)
    less = paired_difference(ours, theirs, alternative="less", new_seeds=new_seeds)
    either = paired_difference(ours, theirs, new_seeds=new_seeds)
    ratio_bounds = [bound if np.isfinite(bound) else np.nan for bound in ratio[1:]]  # no file of a result holds infinity
    numbers = (ratio[0], *ratio_bounds, less.mean, less.low, less.high, less.detectable, less.p, either.p)
    return dict(zip(_UNCOMPARED, numbers, strict=True))
