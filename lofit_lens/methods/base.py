"""What a method is: a frozen set of its own hyperparameters that can `fit`."""

from dataclasses import dataclass, field
from typing import Protocol

from lofit_lens.heads import HeadScores
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.tasks.base import Task


@dataclass(frozen=True, eq=False)
class Fit:
    """What a method found.

    Args:
        intervention: the learned edit.
        scores: scores of all heads, if the method made any.
        losses: for each stage of training, the loss of every step.
    """

    intervention: HeadIntervention
    scores: HeadScores | None = None
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)


class Method(Protocol):
    """A method is its configuration: `fit` needs nothing but a model, a task and a seed."""

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit: ...
