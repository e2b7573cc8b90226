"""What a method is: a frozen set of its own hyperparameters that can `fit`."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.fitting import Optimisation
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import Adapter
from lofit_lens.lens import LensModel
from lofit_lens.objectives import Objective, objective_of
from lofit_lens.tasks.base import Task

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


#: What kind of edit a method makes.
EditT = TypeVar("EditT", bound=Adapter, covariant=True)


@dataclass(frozen=True, eq=False)
class Fit(Generic[EditT]):
    """What a method found.

    Args:
        intervention: the learned edit.
        scores: scores of all heads, if the method made any.
        losses: for each stage of training, the loss of every step.
    """

    intervention: EditT
    scores: HeadScores | None = None
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)


def settings_of(method: Any) -> dict[str, Any]:
    """A method's hyperparameters as plain JSON values: all but where activations are kept, which is nobody else's business."""
    values = {name: getattr(method, name) for name in method.__dataclass_fields__ if name != "folder"}
    return json.loads(json.dumps(values))


def made_by(method: Any, task: Task, seed: int) -> dict[str, Any]:
    """What an adapter, or a method's scores, say of where they come from."""
    return {"method": type(method).__name__, **task.provenance(), "seed": seed, "settings": settings_of(method)}


MethodT = TypeVar("MethodT", bound=Any)


def at_defaults(method: MethodT, names: Iterable[str]) -> MethodT:
    """The method with these settings at their defaults."""
    return replace(method, **{name: method.__dataclass_fields__[name].default for name in names})


class Method(Protocol):
    """A method is its configuration: `fit` needs nothing but a model, a task and a seed."""

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[Adapter]: ...


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Trained:
    """What all methods that train with the one loop (`fitting`) have in common.

    Args:
        batch_size: examples a step.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        dpo_beta: of DPO, for preference tasks.
        token_budget: padded tokens that go through the model at once; changes memory and speed, not results.
    """

    batch_size: Count = 8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0
    dpo_beta: Positive = 0.5
    token_budget: Count = TOKEN_BUDGET

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return settings_of(self)

    def _made_by(self, task: Task, seed: int) -> dict[str, Any]:
        return made_by(self, task, seed)

    def _objective(self, model: LensModel, task: Task) -> Objective:
        return objective_of(model, task, dpo_beta=self.dpo_beta, token_budget=self.token_budget)

    def _optimisation(self, learning_rate: float, epochs: int, **of_vectors: Any) -> Optimisation:
        return Optimisation(
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            token_budget=self.token_budget,
            **of_vectors,
        )
