"""RED: Representation EDiting (Wu et al., ACL 2024, arXiv 2402.15179), at the heads, as the LoFiT paper replicates it.

For every layer l, with z the outputs of all its heads side by side,

    z  <-  (1 + scale_l) * z + offset_l,        scale_l and offset_l learned together, 2 * n_heads * d_head numbers a layer

It is LoFiT's edit at all heads at once, nothing chosen, so the fit is a `HeadIntervention`: 262,144 numbers on Llama-2-7B. The
original edits the output of each MLP instead.
"""

from typing import Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lofit_lens import lens
from lofit_lens.fitting import train
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, NotNegative, Positive, Trained
from lofit_lens.models import base_of, check_model
from lofit_lens.tasks.base import Task


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RED(Trained):
    """A scale and an offset at every head of the edited layers.

    Args:
        learning_rate: at the first step (the paper: 1e-4 to 5e-3, mostly 1e-3).
        epochs: passes over the training data.
        layers: which half of the layers is edited; of an odd number, the lower half has one fewer.
        init_std: of the vectors' start.
    """

    learning_rate: Positive = 1e-3
    epochs: Count = 5
    layers: Literal["all", "lower", "upper"] = "all"
    init_std: NotNegative = 1e-3

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[HeadIntervention]:
        """Learn both vectors of every head.

        Raises:
            ValueError: model or task cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        info = check_model(model)
        half = info.n_layers // 2
        edited = {"all": range(info.n_layers), "lower": range(half), "upper": range(half, info.n_layers)}[self.layers]
        heads = tuple(Head(*head) for head in info.all_heads if head[0] in edited)
        if not heads:
            raise ValueError(f"no head in the {self.layers} half of {info.n_layers} layers; layers='all' edits every one")
        objective = self._objective(model, task)
        generator = torch.Generator().manual_seed(seed)
        start = self.init_std * torch.randn(2, len(heads), info.d_head, generator=generator)
        scale, offset = (part.to(lens.model_device(model)).requires_grad_() for part in start)
        losses = train(
            model,
            objective,
            HeadIntervention(heads, scale, offset),
            [scale, offset],
            self._optimisation(self.learning_rate, self.epochs),
            generators=[generator],
            lowest_layer=heads[0].layer,
            description=f"{task.name}: RED",
            settings=self.settings(),
        )
        intervention = HeadIntervention(
            heads, scale.detach(), offset.detach(), self._made_by(task, seed), base_model=base_of(model)
        )
        return Fit(intervention, losses={"both": losses})
