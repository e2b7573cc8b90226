"""JoLA: Joint Localization and Activation editing (Lai, Fraser and Titov, ICML 2025, arXiv 2502.01179), section 3.

For every head, an offset a and a scaling m, each behind a gate that is learned with them:

    z  <-  (1 + g_m * m) * z + g_a * a            minimise   loss + penalty * sum over heads of (P(g_a > 0) + P(g_m > 0))

Gates are Hard-Concrete variables (Louizos et al. 2018, arXiv 1712.01312) with one parameter each, log_alpha. In training, with
u uniform in (0, 1) for every gate and batch,

    g = clamp(1.2 * sigmoid((log u - log(1 - u) + log_alpha) / 0.33) - 0.1, 0, 1)
    P(g > 0) = sigmoid(log_alpha - 0.33 * log(0.1 / 1.1))

and afterwards g = clamp(1.2 * sigmoid(log_alpha) - 0.1, 0, 1); a head both of whose gates are closed is not edited. There is no
k and no second run: what is left is a `HeadIntervention`. A head's score is the sum of its two gates.

The paper starts with open gates, and does not give the penalty's weight. Its code starts with gates about half open, and its
penalty is, with l = 0.1 exp(-0.01 * step), (l * mean P(g_a > 0) + (1 - l) * mean P(g_m > 0)) / heads of a layer, so that next
to nothing closes the offsets' gates: `as_published=True`. Its learning rate follows a cosine, ours a line; gates here have a
learning rate of their own, for a run may be too short for them at the vectors' rate.
"""

import logging
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lofit_lens import lens
from lofit_lens.fitting import train
from lofit_lens.heads import Head, HeadScores
from lofit_lens.interventions import HeadIntervention, Remade, of_model
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, NotNegative, Positive, Trained
from lofit_lens.models import base_of, check_model
from lofit_lens.tasks.base import Task

logger = logging.getLogger(__name__)

TEMPERATURE = 0.33
LOWEST, HIGHEST = -0.1, 1.1
#: A gate below this is closed (published code).
CLOSED = 1e-6
#: log_alpha at which the expected gate is 0.
CLOSES_AT = -math.log(HIGHEST / -LOWEST)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class JoLA(Trained):
    """Gated scalings and offsets at every head.

    Args:
        learning_rate: of the vectors, at the first step (published: 5e-3).
        gate_lr: of the gates' parameters, at the first step (published code: the vectors' rate).
        penalty: weight of the expected number of open gates; the published code's penalty has no weight.
        open_at_start: log_alpha of every gate at the start; 2 makes them 0.96 open, 0 half open.
        epochs: passes over the training data (published: up to 20, with early stopping).
        init_std: of the vectors' start.
        as_published: the published code's penalty, and its start of the gates; for its gates' rate ask for `gate_lr=5e-3`.
    """

    learning_rate: Positive = 5e-3
    gate_lr: Positive = 0.1
    penalty: NotNegative = 1e-3
    open_at_start: Annotated[float, Field(allow_inf_nan=False)] = 2.0
    epochs: Count = 10
    init_std: NotNegative = 1e-3
    as_published: bool = False

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[HeadIntervention]:
        """Learn vectors and gates; the edit has the heads whose gates are open in the end.

        Raises:
            ValueError: model or task cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        info = check_model(model)
        heads = tuple(Head(*head) for head in info.all_heads)
        objective = self._objective(model, task)
        generator = torch.Generator().manual_seed(seed)
        self._warn_if_no_gate_can_close(self.epochs * math.ceil(len(task.train) / self.batch_size))
        start = self.init_std * torch.randn(2, len(heads), info.d_head, generator=generator), self._gates(info, generator)
        vectors, log_alpha = (part.to(lens.model_device(model)).requires_grad_() for part in start)
        u = torch.full_like(log_alpha, 0.5)

        def sampled() -> HeadIntervention:
            scale, offset = sampled_gates(log_alpha, u).unsqueeze(-1) * vectors
            return HeadIntervention(heads, scale, offset)

        losses = train(
            model,
            objective,
            Remade(sampled, position_free=True),
            [vectors, log_alpha],
            self._optimisation(self.learning_rate, self.epochs),
            generators=[generator],
            lowest_layer=heads[0].layer,
            before_step=lambda: u.copy_(torch.rand(u.shape, generator=generator)),
            penalty=self._penalty(log_alpha, info.n_heads),
            relative_rates=(1.0, self.gate_lr / self.learning_rate),
            description=f"{task.name}: JoLA",
            settings=self.settings(),
        )
        return Fit(*self._resolved(model, heads, vectors.detach(), log_alpha.detach(), task, seed), {"both": losses})

    def _warn_if_no_gate_can_close(self, n_steps: int) -> None:
        # AdamW moves a parameter by its rate or less at every step, and the rate falls to 0 in a line.
        lowest = self.open_at_start - self.gate_lr * n_steps / 2
        if not self.as_published and self.penalty and lowest > CLOSES_AT:
            logger.warning(
                "no gate can close in %d steps: log_alpha starts at %g and comes no lower than %.1f at gate_lr %g, "
                "and gates close at %.1f; raise gate_lr or epochs",
                *(n_steps, self.open_at_start, lowest, self.gate_lr, CLOSES_AT),
            )

    def _gates(self, info: Any, generator: torch.Generator) -> Float[Tensor, "2 head"]:
        shape = (2, len(info.all_heads))
        if not self.as_published:
            return torch.full(shape, self.open_at_start)
        bound = (6 / (info.n_heads + 1)) ** 0.5  # Xavier's, of a column of n_heads
        return bound * (2 * torch.rand(shape, generator=generator) - 1)

    def _penalty(self, log_alpha: Float[Tensor, "2 head"], n_heads: int) -> Callable[[int], Float[Tensor, ""]]:
        def as_in_the_paper(step: int) -> Float[Tensor, ""]:
            return self.penalty * open_probability(log_alpha).sum()

        def as_in_the_code(step: int) -> Float[Tensor, ""]:
            of_offsets = 0.1 * torch.exp(torch.tensor(-0.01 * step))
            of_scales, of_offsets_open = open_probability(log_alpha).mean(-1) / n_heads
            return of_offsets * of_offsets_open + (1 - of_offsets) * of_scales

        return as_in_the_code if self.as_published else as_in_the_paper

    def _resolved(
        self,
        model: LensModel,
        heads: tuple[Head, ...],
        vectors: Float[Tensor, "2 head d_head"],
        log_alpha: Float[Tensor, "2 head"],
        task: Task,
        seed: int,
    ) -> tuple[HeadIntervention, HeadScores]:
        """The edit behind its expected gates, and the gates themselves as scores."""
        info = check_model(model)
        gates = expected_gates(log_alpha).cpu()
        is_open = (gates >= CLOSED).any(0)
        chosen = [i for i in range(len(heads)) if is_open[i]]
        if not chosen:
            logger.warning("no gate is open after training on %s: the edit is empty; try a smaller penalty", task.name)
        values = torch.full((info.n_layers, info.n_heads), torch.nan)
        values[[head.layer for head in heads], [head.index for head in heads]] = gates.sum(0)
        made_by = self._made_by(task, seed)
        scores = HeadScores(values, "sum of the expected gates", made_by, **of_model(model))
        scale, offset = (gates.to(vectors.device).unsqueeze(-1) * vectors)[:, chosen]
        intervention = HeadIntervention(
            tuple(heads[i] for i in chosen),
            scale,
            offset,
            made_by=made_by,
            head_scores=tuple(scores[heads[i]] for i in chosen),
            base_model=base_of(model),
        )
        return intervention, scores


def sampled_gates(log_alpha: Float[Tensor, "2 head"], u: Float[Tensor, "2 head"]) -> Float[Tensor, "2 head"]:
    """Every gate in training, given its u in [0, 1]; differentiable in its parameter."""
    u = u.clamp(1e-6, 1 - 1e-6)
    concrete = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / TEMPERATURE)
    return (concrete * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def expected_gates(log_alpha: Float[Tensor, "2 head"]) -> Float[Tensor, "2 head"]:
    """Every gate after training."""
    return (torch.sigmoid(log_alpha) * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "2 head"]) -> Float[Tensor, "2 head"]:
    """The probability that a drawn gate is not 0."""
    return torch.sigmoid(log_alpha - TEMPERATURE * torch.log(torch.tensor(-LOWEST / HIGHEST)))
