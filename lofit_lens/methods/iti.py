"""ITI: Inference-Time Intervention (Li et al., NeurIPS 2023, arXiv 2306.03341), sections 3 and 4.

For each head, with z its output at the last token of prompt and answer:

    score    = held-out accuracy of a logistic probe for right against wrong answers            (see `probes`)
    theta    = mean of z over right answers - mean over wrong ones ("mass-mean"), or the probe's weights ("probe"), or a random
               direction; brought to length 1
    sigma    = standard deviation of theta . z over all answers
    z       <- z + alpha * sigma * theta        at the k best heads, at every position

Nothing is trained but the probes; the edit is an offset, so it is a `HeadIntervention`.

Where the paper and its code differ: sigma is taken over the answers that the directions come from (the paper); the code takes
another set of texts, those of the test questions included. Where a task has no wrong answers, another example's stands in.
Both judge probes by a validation split and take directions from training and validation questions; here all of it is of the
training split, a fifth of whose questions judges probes, so that a validation split stays unseen, to choose alpha and k by.

Positions. LoFiT edits all of them, and so does this, that the two can be compared. The published code edits, in generation, the
last position of each forward pass, which is the prompt's last token and every generated one: `generated`. In multiple choice it
starts one token late, so that the first two tokens of every answer are predicted unedited: `published`.
"""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lofit_lens.activations import collect_z
from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.heads import HeadScores, checked_heads, head_count
from lofit_lens.interventions import HeadIntervention, of_model
from lofit_lens.layout import Positions
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Fit, at_defaults, made_by, settings_of
from lofit_lens.models import base_of, check_model
from lofit_lens.probes import VAL_SHARE, Probes, fit_probes, held_out, labelled_answers
from lofit_lens.tasks.base import Task, non_empty

Direction = Literal["mass-mean", "probe", "random"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ITI:
    """Offsets along what tells right answers from wrong ones.

    Args:
        k: heads to edit: a count, or a fraction of all heads.
        heads: edit these instead of the k best probes' heads.
        alpha: strength, in standard deviations.
        direction: `mass-mean` (the paper's best), `probe` (the published code's default) or `random` (control).
        positions: which are edited: `all`, `generated`, or `published`; see the module.
        val_share: share of the training questions that probes are judged by.
        standardise: whether probes are fitted on standardised activations.
        max_iter: of the probes' solver.
        token_budget: padded tokens that go through the model at once; changes memory and speed, not results.
        folder: keep activations there, and take them from there (see `activations`); no setting of the result.
    """

    k: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1, strict=True)] = 48
    heads: tuple[tuple[int, int], ...] | None = None
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 15.0
    direction: Direction = "mass-mean"
    positions: Positions = "all"
    val_share: Annotated[float, Field(gt=0, lt=1)] = VAL_SHARE
    standardise: bool = True
    max_iter: Annotated[int, Field(ge=1, strict=True)] = 1000
    token_budget: Annotated[int, Field(ge=1, strict=True)] = TOKEN_BUDGET
    folder: str | None = None

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[HeadIntervention]:
        """Collect activations, fit probes, choose heads and directions.

        Raises:
            ValueError: model, task, k or heads cannot be used; before anything is run.
        """
        info = check_model(model)
        if self.heads is None:
            head_count(self.k, len(info.all_heads))
        else:
            checked_heads(self.heads, info.n_layers, info.n_heads)
        z, is_right, probes = self._probed(model, task, seed)
        scores = self._scores(model, probes, task, seed)
        chosen = scores.top(self.k) if self.heads is None else checked_heads(self.heads, info.n_layers, info.n_heads)
        of_heads = [z[head.layer, :, head.index] for head in chosen]
        directions = self._directions(of_heads, is_right, [probes.weights[head] for head in chosen], seed)
        spreads = [(of_head @ theta).std(correction=0) for of_head, theta in zip(of_heads, directions, strict=True)]
        intervention = HeadIntervention(
            chosen,
            offset=torch.stack([self.alpha * sigma * theta for sigma, theta in zip(spreads, directions, strict=True)]),
            made_by=made_by(self, task, seed),
            head_scores=tuple(scores[head] for head in chosen),
            base_model=base_of(model),
            positions=self.positions,
        )
        return Fit(intervention, scores)

    def select(self, model: LensModel, task: Task, *, seed: int = 0) -> HeadScores:
        """The held-out accuracy of every head's probe, to choose heads by for any method.

        Raises:
            ValueError: model or task cannot be used; before anything is run.
        """
        _, _, probes = self._probed(model, task, seed)
        return self._scores(model, probes, task, seed)

    def selector(self) -> "ITI":
        """This, with everything that `select` does not read at its default: two that are equal score heads alike."""
        return at_defaults(self, ("k", "heads", "alpha", "direction", "positions"))

    def _probed(self, model: LensModel, task: Task, seed: int) -> tuple[Tensor, Tensor, Probes]:
        """`z` of all right and wrong answers, which of them are right, and a probe for every head."""
        labelled = labelled_answers(non_empty(task.train, task, "train"), seed=seed)
        is_right = torch.tensor(labelled.is_right)
        is_held_out = held_out(labelled.questions, self.val_share, seed=seed)
        texts = {"names": labelled.names, "folder": self.folder, "token_budget": self.token_budget}
        z = collect_z(model, labelled.prompts, labelled.answers, **texts)
        probes = fit_probes(z, is_right, is_held_out, standardise=self.standardise, max_iter=self.max_iter)
        return z, is_right, probes

    def _scores(self, model: LensModel, probes: Probes, task: Task, seed: int) -> HeadScores:
        return HeadScores(probes.accuracy, "held-out accuracy of the probe", made_by(self, task, seed), **of_model(model))

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return settings_of(self)

    def _directions(
        self, of_heads: list[Tensor], is_right: Bool[Tensor, "text"], probe_weights: list[Tensor], seed: int
    ) -> list[Float[Tensor, "d_head"]]:
        """theta of each head, from its outputs `[text, d_head]` and its probe."""
        if self.direction == "mass-mean":
            raw = [z[is_right].mean(0) - z[~is_right].mean(0) for z in of_heads]
        elif self.direction == "probe":
            raw = probe_weights
        else:
            generator = torch.Generator().manual_seed(seed)
            raw = [torch.randn(z.shape[1], generator=generator) for z in of_heads]
        # A head that says the same of right and wrong answers has no direction, and gets no offset.
        return [torch.nn.functional.normalize(theta, dim=0) for theta in raw]
