"""What one task's heads, or a whole adapter, do for other tasks.

Either tasks learn their offsets on each other's heads (LoFiT, arXiv 2406.01563, section 6, Figure 2), or adapters stay as they
are and are judged on tasks that they were not fitted on (`effects_on_tasks`; the paper's section 6, Table 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.evaluation import check_evaluation, evaluate
from lofit_lens.interventions import Intervention
from lofit_lens.lens import LensModel
from lofit_lens.outcomes import Evaluation
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Split, Task


@dataclass(frozen=True)
class TransferTable:
    """Evaluations of what comes from a source (row) on a target task (column).

    Args:
        evaluations: for each (source, target).
        sources: rows, in order: tasks and whatever else chose heads ("random", "base"), or names of adapters.
        targets: columns, in order: tasks.
        rows: what a source gives: its heads, at which the target's offsets were learned, or a whole adapter.
    """

    evaluations: Mapping[tuple[str, str], Evaluation]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    rows: Literal["heads of", "adapter"] = "heads of"

    def to_frame(self) -> pd.DataFrame:
        """One row per source and target: the target's metric in [0, 1] with its 95 % interval and the number of examples."""
        cells = [(source, target) for source in self.sources for target in self.targets]
        rows = [{self.rows: source, **self.evaluations[source, target].to_row(), "task": target} for source, target in cells]
        return pd.DataFrame(rows)

    def matrix(self) -> pd.DataFrame:
        """The metric of each cell in [0, 1]: one row per source, one column per target."""
        rows = [[self.evaluations[source, target].value for target in self.targets] for source in self.sources]
        return pd.DataFrame(rows, index=pd.Index(self.sources, name=self.rows), columns=pd.Index(self.targets, name="task"))


def effects_on_tasks(
    model: LensModel,
    interventions: Mapping[str, Intervention],
    tasks: Mapping[str, Task],
    *,
    split: Split = "test",
    token_budget: int = TOKEN_BUDGET,
) -> TransferTable:
    """What every edit does to every task, each by its own metric; the row "base" is the model without any.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        interventions: edits by name.
        tasks: by name, under which their evaluations go.
        split: of every task.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: no tasks, an edit named "base", or what `evaluate` refuses; before anything is run.
        ArithmeticError: scores under one of the edits are not finite.
    """
    if not tasks or "base" in interventions:
        raise ValueError(
            f"got the tasks {list(tasks)} and the edits {list(interventions)}; wanted at least one task, and no edit named "
            "'base', which is the model itself"
        )
    edits: dict[str, Intervention | None] = {"base": None, **interventions}
    cells = [(source, target) for source in edits for target in tasks]
    for source, target in cells:
        check_evaluation(model, tasks[target], edits[source], split=split)
    evaluations = {}
    for source, target in progress(cells, "effects on tasks"):
        found = evaluate(model, tasks[target], edits[source], split=split, token_budget=token_budget)
        # Two tasks of a family have one name of their own; this one is the column's.
        evaluations[source, target] = replace(found, task=target)
    return TransferTable(evaluations, tuple(edits), tuple(tasks), "adapter")
