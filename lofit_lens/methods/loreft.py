"""LoReFT: Low-rank linear subspace Representation FineTuning (Wu et al., NeurIPS 2024, arXiv 2404.03592), section 3.2.

At the first `prefix` and last `suffix` tokens of the prompt, with h the residual stream behind each of some blocks,

    h  <-  h + R^T (W h + b - R h)            R [rank, d_model] with orthonormal rows, W [rank, d_model], b [rank]

R is kept orthonormal by learning any matrix U and taking R from its QR decomposition. The same R, W and b serve all edited
positions of a layer (as in the published code with `--share_weights`; without, prefix and suffix have their own). As there, W
starts as a linear layer does, and the edit is not zero at the start. Rank 8 at every layer makes 2.1 million numbers on
Llama-2-7B, as in the LoFiT paper's Table 3.
"""

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from lofit_lens import lens
from lofit_lens.fitting import train
from lofit_lens.interventions import LowRankIntervention, Remade
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, Positive, Trained
from lofit_lens.models import base_of, check_model
from lofit_lens.tasks.base import Task


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LoReFT(Trained):
    """A low-rank edit of the residual stream at the edges of each prompt.

    Args:
        rank: dimensions that are edited in each layer (the LoFiT paper: 4 to 16).
        layers: which layers; None is all of them.
        prefix: edited tokens from the start of the prompt (the LoFiT paper: 1, 3 or 5, and as many at its end).
        suffix: edited tokens at its end.
        learning_rate: at the first step (the LoFiT paper: 1e-4 to 1e-3).
        epochs: passes over the training data.
    """

    rank: Count = 8
    layers: tuple[int, ...] | None = None
    prefix: int = 3
    suffix: int = 3
    learning_rate: Positive = 1e-3
    epochs: Count = 5

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[LowRankIntervention]:
        """Learn R, W and b of every layer.

        Raises:
            ValueError: model, task, layers, rank or positions cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        info = check_model(model)
        if self.rank > info.d_model:
            raise ValueError(f"got rank {self.rank}; wanted at most d_model = {info.d_model}")
        layers = tuple(range(info.n_layers)) if self.layers is None else self.layers
        generator = torch.Generator().manual_seed(seed)
        shape = (len(layers), self.rank, info.d_model)
        start = torch.randn(shape, generator=generator), *_as_a_linear_layer_starts(shape, generator)
        U, W, b = (tensor.to(lens.model_device(model)).requires_grad_() for tensor in start)
        LowRankIntervention(layers, orthonormal(U.detach()), W.detach(), b.detach(), self.prefix, self.suffix).fwd_hooks(model)
        objective = self._objective(model, task)
        losses = train(
            model,
            objective,
            Remade(lambda: LowRankIntervention(layers, orthonormal(U), W, b, self.prefix, self.suffix), position_free=False),
            [U, W, b],
            self._optimisation(self.learning_rate, self.epochs),
            generators=[generator],
            lowest_layer=min(layers),
            description=f"{task.name}: LoReFT",
            settings=self.settings(),
        )
        intervention = LowRankIntervention(
            layers,
            orthonormal(U.detach()),
            W.detach(),
            b.detach(),
            self.prefix,
            self.suffix,
            made_by=self._made_by(task, seed),
            base_model=base_of(model),
        )
        return Fit(intervention, losses={"edit": losses})


def orthonormal(U: Float[Tensor, "layer rank d_model"]) -> Float[Tensor, "layer rank d_model"]:
    """Rows that span the same space and are orthonormal: Gram-Schmidt, first row first; differentiable."""
    Q, triangular = torch.linalg.qr(U.mT)
    # Of the decompositions that there are, the one with a positive diagonal: it changes smoothly with U.
    return (Q * triangular.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT


def _as_a_linear_layer_starts(shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """W and b, uniform up to 1 / sqrt(d_model), as `torch.nn.Linear` draws them."""
    bound = shape[-1] ** -0.5
    return tuple(bound * (2 * torch.rand(part, generator=generator) - 1) for part in (shape, shape[:2]))  # pyright: ignore[reportReturnType]
