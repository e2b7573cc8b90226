"""What a method is: a frozen set of its own hyperparameters that can `fit`."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.fitting import Optimisation
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.tasks.base import Task

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


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


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Trained:
    """What all methods that train with the one loop (`fitting`) have in common.

    Args:
        batch_size: examples a step.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        init_std: of the vectors' start.
        dpo_beta: of DPO, for preference tasks.
        token_budget: padded tokens that go through the model at once; changes memory and speed, not results.
    """

    batch_size: Count = 8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0
    init_std: NotNegative = 1e-3
    dpo_beta: Positive = 0.5
    token_budget: Count = TOKEN_BUDGET

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _optimisation(self, learning_rate: float, epochs: int, l1: float = 0.0) -> Optimisation:
        return Optimisation(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=self.batch_size,
            l1=l1,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            init_std=self.init_std,
            token_budget=self.token_budget,
        )
