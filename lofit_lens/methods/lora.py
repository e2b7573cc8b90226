"""LoRA: Low-Rank Adaptation (Hu et al. 2021, arXiv 2106.09685) of W_Q and W_V, as the LoFiT paper compares with (Table 3).

    W  <-  W + (alpha / rank) * B A        A drawn as `peft` does, B = 0 at the start; dropout on what goes into A

Rank 8, alpha 8 and dropout 0.1 are the paper's: 4,194,304 numbers on Llama-2-7B. The layers are `peft`'s (extra
`lofit-lens[lora]`); they stand in the Hugging Face model inside a TransformerBridge (a HookedTransformer has none) while it is
trained, and its own come back.
"""

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.fitting import train
from lofit_lens.interventions import LoRAIntervention, Remade
from lofit_lens.interventions.lora import LoRALayers
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, Positive, Trained
from lofit_lens.models import base_of, check_model
from lofit_lens.tasks.base import Task


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LoRA(Trained):
    """Low-rank changes of the query and value maps of every layer.

    Args:
        rank: of each change.
        alpha: the change is scaled by `alpha / rank`.
        dropout: of the inputs of A, in training; what it draws depends on how batches are cut, so on `token_budget` too.
        learning_rate: at the first step (the paper: mostly 1e-3).
        epochs: passes over the training data.
    """

    rank: Count = 8
    alpha: Positive = 8.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    learning_rate: Positive = 1e-3
    epochs: Count = 5

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[LoRAIntervention]:
        """Learn the factors of every change. Random numbers that others draw are not touched.

        Raises:
            ImportError: the extra is not installed.
            ValueError: model or task cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        # peft draws A, and torch its dropout, from the global generators, all of which `manual_seed` seeds.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            layers = LoRALayers(model, self.rank, self.alpha, self.dropout)
            objective = self._objective(model, task)
            layers.dropout(on=True)
            losses = train(
                model,
                objective,
                Remade(lambda: layers, position_free=True),
                list(layers.factors.values()),
                self._optimisation(self.learning_rate, self.epochs),
                generators=[torch.Generator().manual_seed(seed), torch.default_generator, *torch.cuda.default_generators],
                lowest_layer=min(check_model(model).attention_layers),
                description=f"{task.name}: LoRA",
                settings=self.settings(),
            )
        factors = {name: factor.detach().clone() for name, factor in layers.factors.items()}
        intervention = LoRAIntervention(
            self.rank, self.alpha, factors, made_by=self._made_by(task, seed), base_model=base_of(model)
        )
        return Fit(intervention, losses={"factors": losses})
