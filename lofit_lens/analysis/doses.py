"""What an edit gains and what it costs at each strength.

For each dose alpha, every vector of the edit is multiplied:

    edit(alpha) = alpha * edit            LoFiT's heads:  z <- (1 + alpha * scale) * z + alpha * offset

0 is the base model, 1 the edit as it was fitted; below 0 it pushes the other way. What a task gains stands beside what ordinary
text pays for it (`side_effects`), as ITI weighs the two when it chooses its own alpha (Li et al. 2023, arXiv 2306.03341,
sections 4 and 5).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.evaluation import check_evaluation, evaluate
from lofit_lens.interventions import Intervention
from lofit_lens.lens import LensModel
from lofit_lens.outcomes import Evaluation
from lofit_lens.progress import progress
from lofit_lens.side_effects import SideEffects, side_effects_of_each
from lofit_lens.tasks.base import Metric, Split, Task

DOSES = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@runtime_checkable
class Scalable(Intervention, Protocol):
    """An edit that can be taken at any strength, such as `HeadIntervention` and `ResidualIntervention`."""

    def __mul__(self, strength: int | float) -> Intervention: ...


@dataclass(frozen=True)
class DoseResponse:
    """An edit at several strengths.

    Args:
        doses: what the edit was multiplied by, ascending; without unit.
        evaluations: on the task, one for each dose.
        side_effects: on ordinary text in nats a token, one for each dose; none if no texts were given.
    """

    doses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    side_effects: tuple[SideEffects, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row per dose: the metric in [0, 1] with its 95 % interval and the number of examples.

        With texts, also the rise in cross-entropy and the KL from the base model, in nats a token, with their intervals and the
        number of texts.
        """
        costs: Sequence[dict[str, Any]] = [_costs(found) for found in self.side_effects] or [{}] * len(self.doses)
        rows = zip(self.doses, self.evaluations, costs, strict=True)
        return pd.DataFrame([{"dose": dose, **evaluation.to_row(), **cost} for dose, evaluation, cost in rows])


def _costs(found: SideEffects) -> dict[str, Any]:
    costs: dict[str, Any] = {}
    for name, mean, low, high in found.summary().loc[["rise_in_cross_entropy", "kl"]].itertuples():
        costs |= {str(name): mean, f"{name}_low": low, f"{name}_high": high}
    return {**costs, "n_texts": len(found.kl)}


def dose_response(
    model: LensModel,
    task: Task,
    intervention: Scalable,
    doses: Sequence[float] = DOSES,
    *,
    texts: Sequence[str] | None = None,
    split: Split = "test",
    metric: Metric | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> DoseResponse:
    """Evaluate an edit at several strengths.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its examples, and how an answer is judged.
        intervention: the edit, at dose 1.
        doses: what it is multiplied by, in any order. At 0 nothing is attached at all.
        texts: what side effects are measured on, such as `tasks.open_web_text()`; None measures none.
        split: of the task.
        metric: as `evaluate` takes it; None is the task's own.
        token_budget: padded tokens of the task that go through the model at once.

    Raises:
        ValueError: doses that are not one or more different numbers, an edit that cannot be multiplied, or what `evaluate` or
            `side_effects` refuses; before anything is run.
        ArithmeticError: at one of the doses, scores are not finite.
    """
    strengths = _ascending(doses)
    if not isinstance(intervention, Scalable):
        raise ValueError(
            f"got a {type(intervention).__name__}, which cannot be multiplied; wanted a HeadIntervention or a "
            "ResidualIntervention: fit LoFiT, ITI, RED, JoLA, RepE or BitFit, or evaluate this edit as it is"
        )
    check_evaluation(model, task, intervention, split=split, metric=metric)
    edits = [intervention * dose for dose in strengths]
    # First, since it refuses what it cannot use before it runs anything.
    costs = () if texts is None else tuple(side_effects_of_each(model, edits, texts))
    # An edit times 0 is the base model in theory; not if one of its numbers is infinite.
    attachable = [edit if dose else None for dose, edit in zip(strengths, edits, strict=True)]
    evaluations = tuple(
        evaluate(model, task, edit, split=split, metric=metric, token_budget=token_budget)
        for edit in progress(attachable, f"{task.name}: doses")
    )
    return DoseResponse(strengths, evaluations, costs)


def _ascending(doses: Sequence[float]) -> tuple[float, ...]:
    ascending = tuple(sorted(map(float, doses)))
    if not ascending or not all(map(math.isfinite, ascending)) or len(set(ascending)) < len(ascending):
        raise ValueError(f"got the doses {list(doses)}; wanted one or more finite numbers, none twice")
    return ascending
