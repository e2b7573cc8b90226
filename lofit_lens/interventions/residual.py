"""Constant vectors added to what a layer writes: steering vectors, and biases of the attention output.

With h the residual stream behind a block, or the attention's output of that block (which goes into the residual stream, on
some architectures through a norm of its own),

    h  <-  h + vector[layer]            at every position

RepE (Zou et al. 2023, arXiv 2310.01405) adds a direction of its own finding; BitFit (Ben Zaken et al. 2022, arXiv 2106.10199)
learns a bias, which is the same edit at the attention's output.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.interventions.base import FwdHook, checked_layers, malformed, read_checked_adapter, save_adapter
from lofit_lens.lens import LensModel

KIND = "residual"

Site = Literal["resid_post", "attn_out"]


@dataclass(frozen=True, eq=False)
class ResidualIntervention:
    """A vector of `d_model` numbers for each of some layers.

    Args:
        layers: the edited layers; row `i` of the vectors belongs to `layers[i]`.
        vectors: what is added, in units of what it is added to.
        site: `resid_post`, the residual stream behind the block, or `attn_out`, the output of its attention.
        made_by: how it came about, kept in the adapter's files.
        base_model: the model that it was made for, as `models.base_of` describes it.
    """

    layers: tuple[int, ...]
    vectors: Float[Tensor, "layer d_model"]
    site: Site = "resid_post"
    made_by: Mapping[str, Any] = field(default_factory=dict)
    base_model: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.site not in get_args(Site):
            raise ValueError(f"got site {self.site!r}; wanted one of {', '.join(get_args(Site))}")
        if self.vectors.ndim != 2 or self.vectors.shape[0] != len(self.layers):
            raise ValueError(
                f"vectors has shape {tuple(self.vectors.shape)}; wanted [{len(self.layers)}, d_model], a row for each layer"
            )

    @property
    def position_free(self) -> bool:
        return True

    @property
    def n_parameters(self) -> int:
        """How many numbers the edit is made of."""
        return self.vectors.numel()

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit is at work inside.

        Raises:
            ValueError: as `fwd_hooks`.
        """
        return model.hooks(fwd_hooks=self.fwd_hooks(model))

    def fwd_hooks(self, model: LensModel) -> list[FwdHook]:
        """One hook for every edited layer.

        Raises:
            ValueError: a layer, d_model or site that the model does not have.
        """
        checked_layers(model, self.layers, self.vectors.shape[1])
        point = lens.attn_out_hook if self.site == "attn_out" else lens.resid_post_hook
        return [(point(model, layer), _adding(vector)) for layer, vector in zip(self.layers, self.vectors, strict=True)]

    def __mul__(self, strength: int | float) -> "ResidualIntervention":
        """The edit at another strength; 0 is the base model."""
        return replace(self, vectors=strength * self.vectors, made_by={"strength": strength, "of": dict(self.made_by)})

    __rmul__ = __mul__

    def __neg__(self) -> "ResidualIntervention":
        return -1.0 * self

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter folder; as `HeadIntervention.save`."""
        described = {
            "edit": f"{len(self.layers)} layers, {self.site} <- {self.site} + vector",
            "layers": list(self.layers),
            "site": self.site,
        }
        return save_adapter(self, KIND, described, {"vectors": self.vectors}, folder, model, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "ResidualIntervention":
        """Read an adapter folder back; as `HeadIntervention.load`."""
        config, vectors = read_checked_adapter(folder, KIND, model)
        try:
            return cls(
                tuple(map(int, config["layers"])),
                vectors["vectors"],
                config["site"],
                made_by=config["made_by"],
                base_model=config["base_model"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(folder, error) from error


def _adding(vector: Float[Tensor, "d_model"]) -> Callable[..., Tensor]:
    def edit(value: Float[Tensor, "batch pos d_model"], hook: Any) -> Float[Tensor, "batch pos d_model"]:
        edited = value.to(torch.promote_types(value.dtype, torch.float32)) + vector.to(value.device)
        return edited.to(value.dtype)

    return edit
