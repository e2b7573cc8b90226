"""LoReFT's edit: the residual stream is changed within a few directions, at the edges of the prompt.

With h the residual stream behind a block (Wu et al., NeurIPS 2024, arXiv 2404.03592, equation 2),

    h  <-  h + R^T (W h + b - R h)            R [rank, d_model] with orthonormal rows, W [rank, d_model], b [rank]

so that inside the space that R spans, h becomes W h + b, and outside it stays.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.interventions.base import FwdHook, checked_layers, malformed, read_checked_adapter, save_adapter
from lofit_lens.layout import layout_of
from lofit_lens.lens import LensModel

KIND = "low_rank"


@dataclass(frozen=True, eq=False)
class LowRankIntervention:
    """A rank-r edit of the residual stream behind each of some layers.

    Args:
        layers: the edited layers; entry `i` of the tensors belongs to `layers[i]`.
        rotation: R, with orthonormal rows.
        weight: W.
        bias: b.
        prefix: how many tokens from the start of each prompt are edited.
        suffix: how many up to its end; the answer is never edited.
        made_by: how it came about, kept in the adapter's files.
        base_model: the model that it was made for, as `models.base_of` describes it.
    """

    layers: tuple[int, ...]
    rotation: Float[Tensor, "layer rank d_model"]
    weight: Float[Tensor, "layer rank d_model"]
    bias: Float[Tensor, "layer rank"]
    prefix: int
    suffix: int
    made_by: Mapping[str, Any] = field(default_factory=dict)
    base_model: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        shapes = (self.rotation.shape, self.weight.shape, (*self.bias.shape, self.rotation.shape[-1]))
        if len({tuple(shape) for shape in shapes}) > 1 or len(self.layers) != self.rotation.shape[0]:
            raise ValueError(
                f"rotation is {tuple(self.rotation.shape)}, weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)}; "
                f"wanted [{len(self.layers)}, rank, d_model] twice and [{len(self.layers)}, rank]"
            )
        if min(self.prefix, self.suffix) < 0 or self.prefix + self.suffix == 0:
            raise ValueError(f"got prefix {self.prefix} and suffix {self.suffix}; wanted none below 0, one above")

    @property
    def position_free(self) -> bool:
        return False

    @property
    def n_parameters(self) -> int:
        """How many numbers the edit is made of."""
        return self.rotation.numel() + self.weight.numel() + self.bias.numel()

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit is at work inside.

        Raises:
            ValueError: as `fwd_hooks`.
        """
        return model.hooks(fwd_hooks=self.fwd_hooks(model))

    def fwd_hooks(self, model: LensModel) -> list[FwdHook]:
        """One hook for every edited layer.

        Raises:
            ValueError: a layer or d_model that the model does not have.
        """
        checked_layers(model, self.layers, self.rotation.shape[-1])
        parts = zip(self.rotation, self.weight, self.bias, strict=True)
        edits = (self._edit_of(*part) for part in parts)
        return [(lens.resid_post_hook(model, layer), edit) for layer, edit in zip(self.layers, edits, strict=True)]

    def _edit_of(self, R: Tensor, W: Tensor, b: Tensor) -> Callable[..., Tensor]:
        def edit(h: Float[Tensor, "batch pos d_model"], hook: Any) -> Float[Tensor, "batch pos d_model"]:
            here = layout_of(h).edges(self.prefix, self.suffix).to(h.device)
            rows = h[here].to(torch.promote_types(h.dtype, torch.float32))
            inside = einsum(rows, (W - R).to(rows), "n d_model, rank d_model -> n rank") + b.to(rows)
            rows = rows + einsum(inside, R.to(rows), "n rank, rank d_model -> n d_model")
            return h.masked_scatter(here.unsqueeze(-1), rows.to(h.dtype))

        return edit

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter folder; as `HeadIntervention.save`."""
        described = {
            "edit": f"{len(self.layers)} layers, h <- h + R^T (W h + b - R h), prompt edges {self.prefix} + {self.suffix}",
            "layers": list(self.layers),
            "prefix": self.prefix,
            "suffix": self.suffix,
        }
        vectors = {name: getattr(self, name) for name in ("rotation", "weight", "bias")}
        return save_adapter(self, KIND, described, vectors, folder, model, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "LowRankIntervention":
        """Read an adapter folder back; as `HeadIntervention.load`."""
        config, vectors = read_checked_adapter(folder, KIND, model)
        try:
            return cls(
                tuple(map(int, config["layers"])),
                vectors["rotation"],
                vectors["weight"],
                vectors["bias"],
                int(config["prefix"]),
                int(config["suffix"]),
                made_by=config["made_by"],
                base_model=config["base_model"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(folder, error) from error
