"""What two edits do together, and on the way from one to the other.

    edit(w_a, w_b) = w_a * a + w_b * b

Vectors of heads that both edit add up; heads that one of them edits keep its vectors. The line w_a + w_b = 1 leads from (1, 0),
which is a, to (0, 1), which is b; (1, 1) is both at full strength, (0, 0) the base model. Edits that were fitted apart need not
work together: whether they do is what is measured (task arithmetic, Ilharco et al. 2023, arXiv 2212.04089).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.evaluation import check_evaluation, evaluate
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.outcomes import Evaluation
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Split, Task

WEIGHTS = ((0.0, 0.0), (1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True)
class Mixture:
    """Weighted sums of two edits on several tasks.

    Args:
        weights: of a and of b, without unit, in order.
        tasks: their names, in order.
        evaluations: for each (weights, task).
    """

    weights: tuple[tuple[float, float], ...]
    tasks: tuple[str, ...]
    evaluations: Mapping[tuple[tuple[float, float], str], Evaluation]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of weights and task: the task's metric in [0, 1] with its 95 % interval."""
        return pd.DataFrame(
            [
                {"weight_a": a, "weight_b": b, **self.evaluations[(a, b), task].to_row(), "task": task}
                for a, b in self.weights
                for task in self.tasks
            ]
        )


def mixture(
    model: LensModel,
    tasks: Mapping[str, Task],
    a: HeadIntervention,
    b: HeadIntervention,
    weights: Sequence[tuple[float, float]] = WEIGHTS,
    *,
    split: Split = "test",
    token_budget: int = TOKEN_BUDGET,
) -> Mixture:
    """Evaluate weighted sums of two edits, each task by its own metric.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        tasks: by name; those that a and b were fitted on, say.
        a: one edit.
        b: the other, of the same base model and at the same positions.
        weights: of a and of b. At (0, 0) nothing is attached at all.
        split: of every task.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: no tasks, weights that are not one or more different pairs of numbers, edits that cannot be added, or what
            `evaluate` refuses; before anything is run.
        ArithmeticError: scores of one of the sums are not finite.
    """
    pairs = tuple((float(of_a), float(of_b)) for of_a, of_b in weights)
    if not pairs or not all(math.isfinite(weight) for pair in pairs for weight in pair) or len(set(pairs)) < len(pairs):
        raise ValueError(f"got the weights {list(weights)}; wanted one or more pairs of finite numbers, none twice")
    if not tasks:
        raise ValueError("got no tasks; wanted at least one, by its name")
    for edit in (a, b):
        if not isinstance(edit, HeadIntervention):
            raise ValueError(
                f"got a {type(edit).__name__}, which cannot be added to another edit; wanted two HeadInterventions: fit LoFiT, "
                "ITI, RED or JoLA"
            )
    cells = {(pair, name): _sum(a, b, pair) for pair in pairs for name in tasks}
    for (_, name), edit in cells.items():
        check_evaluation(model, tasks[name], edit, split=split)
    evaluations = {
        (pair, name): evaluate(model, tasks[name], edit, split=split, token_budget=token_budget)
        for (pair, name), edit in progress(list(cells.items()), "mixture")
    }
    return Mixture(pairs, tuple(tasks), evaluations)


def _sum(a: HeadIntervention, b: HeadIntervention, weights: tuple[float, float]) -> HeadIntervention | None:
    """Without what has no weight, so that (1, 0) is a alone, and (0, 0) the base model."""
    parts = [weight * edit for weight, edit in zip(weights, (a, b), strict=True) if weight]
    return parts[0] + parts[1] if len(parts) == 2 else next(iter(parts), None)
