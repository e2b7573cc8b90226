"""RepE: Representation Engineering (Zou et al. 2023, arXiv 2310.01405), as the LoFiT paper compares with (section 4).

With h_i and h'_i the residual stream behind block l at the last token of training prompt i and its right, or its wrong, answer,
and d_i = h_i - h'_i,

    theta    = first principal direction of the d_i, not centred, pointing as their mean does       ("reading")
               mean of the d_i                                                                      ("contrast")
    h       <- h + alpha * theta / |theta|        at one layer, at every position

Nothing is trained. The layer is the one with the lowest loss on validation examples. alpha is in units of the residual stream,
whose size differs between models and layers: 5 was the LoFiT paper's for the 7B models.

The original also compares two runs of the same prompt at run time and calls their difference the contrast vector; here, as an
edit must be a constant to be kept, it is the mean over training pairs. Where a task has no wrong answers, another example's
answer stands in.
"""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from lofit_lens.activations import collect_residual
from lofit_lens.batches import TOKEN_BUDGET, encode
from lofit_lens.interventions import ResidualIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, Positive, made_by, settings_of
from lofit_lens.models import base_of, check_model
from lofit_lens.objectives import mean_loss, objective_of
from lofit_lens.probes import labelled_answers
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Task, non_empty


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RepE:
    """A steering vector in the residual stream of one layer.

    Args:
        vector: `reading` (the LoFiT paper: for TruthfulQA) or `contrast` (for MQuAKE and CLUTRR).
        alpha: length of what is added, in units of the residual stream.
        layers: the layers to choose from; None is all but the last.
        n_val: validation examples that they are judged by, the first ones.
        dpo_beta: of DPO, for preference tasks.
        token_budget: padded tokens that go through the model at once; changes memory and speed, not results.
        folder: keep activations there, and take them from there (see `activations`); no setting of the result.
    """

    vector: Literal["reading", "contrast"] = "reading"
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 5.0
    layers: tuple[int, ...] | None = None
    n_val: Count = 50
    dpo_beta: Positive = 0.5
    token_budget: Count = TOKEN_BUDGET
    folder: str | None = None

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[ResidualIntervention]:
        """Find a direction for every layer, and the layer.

        Raises:
            ValueError: model, task or layers cannot be used; before anything is run.
            ArithmeticError: an answer's log-probability is not finite.
        """
        info = check_model(model)
        layers = tuple(range(info.n_layers - 1)) if self.layers is None else self.layers
        candidates = ResidualIntervention(layers, torch.zeros(len(layers), info.d_model))
        candidates.fwd_hooks(model)  # refuses layers that the model does not have
        labelled = labelled_answers(non_empty(task.train, task, "train"), seed=seed)
        pairs = [place for pair in labelled.pairs() for place in pair]
        prompts, answers, names = ([part[i] for i in pairs] for part in (labelled.prompts, labelled.answers, labelled.names))
        encode(model, prompts, answers, eos=False, names=names)  # before the pass that DPO's reference costs
        settings = {"dpo_beta": self.dpo_beta, "token_budget": self.token_budget, "first": self.n_val}
        objective = objective_of(model, task, split="val", **settings)
        h = collect_residual(
            model, prompts, answers, layers=layers, names=names, folder=self.folder, token_budget=self.token_budget
        )
        differences = h[:, 0::2] - h[:, 1::2]
        directions = torch.stack([principal_direction(d) if self.vector == "reading" else d.mean(0) for d in differences])
        vectors = self.alpha * torch.nn.functional.normalize(directions, dim=-1)
        losses = tuple(
            mean_loss(model, objective, ResidualIntervention((layer,), vectors[i : i + 1]), token_budget=self.token_budget)
            for i, layer in enumerate(progress(layers, f"{task.name}: layers"))
        )
        best = min(range(len(layers)), key=losses.__getitem__)
        intervention = ResidualIntervention(
            (layers[best],), vectors[best : best + 1], "resid_post", made_by(self, task, seed), base_of(model)
        )
        return Fit(intervention, losses={"validation, by layer": losses})

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return settings_of(self)


def principal_direction(differences: Float[Tensor, "pair d_model"]) -> Float[Tensor, "d_model"]:
    """The unit vector v that maximises the sum of (v . d)^2, with v . mean(d) > 0."""
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    return direction if differences.mean(0) @ direction >= 0 else -direction
