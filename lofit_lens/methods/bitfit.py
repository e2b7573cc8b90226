"""BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): learn biases and nothing else, here those of the attention's output.

    attn_out[l]  <-  attn_out[l] + b[l]        b [d_model], at every position; b = 0 at the start

Where the model has such a bias (GPT-2, Phi), this is a change of it; where it has none (Llama, Gemma), one is added. Every
offset at heads is such a bias, `b[l] = sum_h offset[l, h] W_O[l, h]` (see `HeadIntervention.residual_bias`): BitFit is free
where LoFiT's offsets are confined to what a few heads can write. The original tunes all biases of the model.
"""

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lofit_lens import lens
from lofit_lens.fitting import train
from lofit_lens.interventions import ResidualIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, Positive, Trained
from lofit_lens.models import base_of, check_model
from lofit_lens.tasks.base import Task


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BitFit(Trained):
    """A bias on every layer's attention output.

    Args:
        learning_rate: at the first step.
        epochs: passes over the training data.
    """

    learning_rate: Positive = 1e-3
    epochs: Count = 5

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[ResidualIntervention]:
        """Learn the biases.

        Raises:
            ValueError: model or task cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        info = check_model(model)
        layers = info.attention_layers
        biases = torch.zeros(len(layers), info.d_model, device=lens.model_device(model), requires_grad=True)
        edit = ResidualIntervention(layers, biases, "attn_out")
        edit.fwd_hooks(model)  # refuses a model whose attention output has no hook of its own
        objective = self._objective(model, task)
        losses = train(
            model,
            objective,
            edit,
            [biases],
            self._optimisation(self.learning_rate, self.epochs),
            generators=[torch.Generator().manual_seed(seed)],
            lowest_layer=layers[0],
            description=f"{task.name}: BitFit",
            settings=self.settings(),
        )
        made_by, base_model = self._made_by(task, seed), base_of(model)
        intervention = ResidualIntervention(layers, biases.detach(), "attn_out", made_by, base_model)
        return Fit(intervention, losses={"biases": losses})
