"""Scales and offsets at attention heads: LoFiT's edit, and ITI's, RED's and JoLA's.

The edit (paper section 3, equation 3; published code `models/modeling_llama.py`) of head `h` in layer `l`, at every
token position, padding included, before W_O:

    z[l, h]  <-  (1 + scale[l, h]) * z[l, h] + offset[l, h]

Vectors are float32 whatever the model is, and the arithmetic is done in float32 too, then cast back: in bfloat16 a scale of
0.001 would vanish in `1 + scale`. With zero vectors the result is the model's own, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.heads import Head, HeadScores, checked_heads
from lofit_lens.interventions.base import FwdHook, malformed, read_checked_adapter, save_adapter
from lofit_lens.layout import Positions, layout_of
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model

KIND = "heads"


@dataclass(frozen=True, eq=False)
class HeadIntervention:
    """A scale and an offset vector for each of `k` heads.

    Args:
        heads: the edited heads; row `i` of the vectors belongs to `heads[i]`.
        scale: added to 1 before it multiplies `z`; None means zeros.
        offset: added to `z`, in units of `z`; None means zeros.
        made_by: how it came about, kept in the adapter's files (method, task, seeds, settings).
        head_scores: the selection scores of `heads`, if it was made by a selection.
        base_model: the model that it was made for, as `models.base_of` describes it.
        positions: where it applies; see `layout.Positions`. Everywhere, unless ITI was asked for something else.
    """

    heads: tuple[Head, ...]
    scale: Float[Tensor, "k d_head"] | None = None
    offset: Float[Tensor, "k d_head"] | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    head_scores: tuple[float, ...] | None = None
    base_model: Mapping[str, Any] | None = None
    positions: Positions = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(Head(*head) for head in self.heads))
        for name in ("scale", "offset"):
            vectors = getattr(self, name)
            if vectors is not None and (vectors.ndim != 2 or vectors.shape[0] != len(self.heads)):
                raise ValueError(
                    f"{name} has shape {tuple(vectors.shape)}; wanted [{len(self.heads)}, d_head], a row for each head"
                )
        if self.head_scores is not None and len(self.head_scores) != len(self.heads):
            raise ValueError(f"{len(self.head_scores)} head_scores for {len(self.heads)} heads; wanted one for each")
        if self.positions not in get_args(Positions):
            raise ValueError(f"got positions {self.positions!r}; wanted one of {', '.join(get_args(Positions))}")
        if self.scale is None and self.offset is None:
            raise ValueError("an intervention needs a scale or an offset; for no edit at all, pass None instead of it")
        if self.scale is not None and self.offset is not None and self.scale.shape != self.offset.shape:
            raise ValueError(f"scale is {tuple(self.scale.shape)} and offset {tuple(self.offset.shape)}; wanted one shape")

    @property
    def d_head(self) -> int:
        vectors = self.scale if self.scale is not None else self.offset
        assert vectors is not None
        return vectors.shape[1]

    @property
    def n_parameters(self) -> int:
        """How many numbers the edit is made of (the paper's Table 3)."""
        return sum(vectors.numel() for vectors in (self.scale, self.offset) if vectors is not None)

    @property
    def position_free(self) -> bool:
        return self.positions == "all"

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit is at work inside.

        Raises:
            ValueError: as `fwd_hooks`.
        """
        return model.hooks(fwd_hooks=self.fwd_hooks(model))

    def fwd_hooks(self, model: LensModel) -> list[FwdHook]:
        """One hook for every layer that has an edited head.

        Raises:
            ValueError: a head or d_head that the model does not have.
        """
        info = check_model(model)
        if self.heads:  # JoLA may have closed every gate
            checked_heads(self.heads, info.n_layers, info.n_heads)
        for head in self.heads:
            if head.layer not in info.attention_layers:
                raise ValueError(f"layer {head.layer} of {head.label} has no attention; layers with: {info.attention_layers}")
        if self.d_head != info.d_head:
            raise ValueError(f"the vectors have d_head = {self.d_head}, the model's heads {info.d_head}; fit it on this model")
        return [(lens.z_hook(layer), self._edit_of(layer, info.n_heads)) for layer in sorted({h.layer for h in self.heads})]

    def _edit_of(self, layer: int, n_heads: int) -> Callable[..., Tensor]:
        rows = [i for i, head in enumerate(self.heads) if head.layer == layer]
        indices = [self.heads[i].index for i in rows]
        scale, offset = (None if v is None else _spread(v[rows], indices, n_heads) for v in (self.scale, self.offset))

        def edit(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Float[Tensor, "batch pos head d_head"]:
            edited = z.to(torch.promote_types(z.dtype, torch.float32))
            if scale is not None:
                edited = edited * (1 + scale.to(z.device))
            if offset is not None:
                edited = edited + offset.to(z.device)
            edited = edited.to(z.dtype)
            if self.position_free:
                return edited
            here = layout_of(z).edited(self.positions).to(z.device)
            return torch.where(here[:, :, None, None], edited, z)

        return edit

    def residual_bias(self, model: LensModel) -> Float[Tensor, "layer d_model"]:
        """What the offsets add to each layer's attention output: `sum_h offset[l, h] @ W_O[l, h]`, in float32."""
        info = check_model(model)
        bias = torch.zeros(info.n_layers, info.d_model, device=lens.model_device(model))
        if self.offset is None:
            return bias
        for i, head in enumerate(self.heads):
            W_O = lens.head_output_weights(model, head.layer)[head.index].float()
            bias[head.layer] += einsum(self.offset[i].to(W_O.device), W_O, "d_head, d_head d_model -> d_model").to(bias.device)
        return bias

    def restrict(self, heads: Iterable[tuple[int, int]]) -> "HeadIntervention":
        """The same edit at some of its heads only.

        Raises:
            ValueError: a head that it does not edit.
        """
        wanted = tuple(Head(*head) for head in heads)
        missing = [head.label for head in wanted if head not in self.heads]
        if missing or not wanted:
            raise ValueError(f"cannot restrict to {missing or 'no heads'}; edited are {[h.label for h in self.heads]}")
        rows = [self.heads.index(head) for head in wanted]
        return replace(
            self,
            heads=wanted,
            scale=None if self.scale is None else self.scale[rows],
            offset=None if self.offset is None else self.offset[rows],
            head_scores=None if self.head_scores is None else tuple(self.head_scores[i] for i in rows),
        )

    def __mul__(self, strength: int | float) -> "HeadIntervention":
        """Both vectors times a number: the edit at another strength; 0 is the base model."""
        return replace(
            self,
            scale=None if self.scale is None else strength * self.scale,
            offset=None if self.offset is None else strength * self.offset,
            made_by={"strength": strength, "of": dict(self.made_by)},
        )

    __rmul__ = __mul__

    def __neg__(self) -> "HeadIntervention":
        return -1.0 * self

    def __add__(self, other: "HeadIntervention") -> "HeadIntervention":
        """Vectors of heads that both edit add up; heads that one of them edits keep its vectors.

        Raises:
            ValueError: of another d_head, at other positions, or of another base model.
        """
        if self.positions != other.positions:
            raise ValueError(f"cannot add interventions at {self.positions!r} and at {other.positions!r} positions")
        if self.d_head != other.d_head:
            raise ValueError(f"cannot add interventions with d_head = {self.d_head} and {other.d_head}")
        bases = [part.base_model["fingerprint"] for part in (self, other) if part.base_model is not None]
        if len(set(bases)) > 1:
            raise ValueError(f"cannot add interventions of two base models (fingerprints {bases[0]} and {bases[1]})")
        heads = tuple(dict.fromkeys((*self.heads, *other.heads)))

        def total(name: str) -> Tensor | None:
            if getattr(self, name) is None and getattr(other, name) is None:
                return None
            summed = torch.zeros(len(heads), self.d_head)
            for part in (self, other):
                vectors = getattr(part, name)
                if vectors is not None:
                    summed[[heads.index(head) for head in part.heads]] += vectors.detach().cpu().float()
            return summed

        made_by = {"sum_of": [dict(self.made_by), dict(other.made_by)]}
        base_model = self.base_model or other.base_model
        return HeadIntervention(
            heads, total("scale"), total("offset"), made_by, base_model=base_model, positions=self.positions
        )

    def __sub__(self, other: "HeadIntervention") -> "HeadIntervention":
        return self + (-other)

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter folder: `lofit_config.json`, `lofit_vectors.safetensors`, and a card.

        Args:
            folder: where to.
            model: the model that it is for; not needed where a method or `load` has noted it (`base_model`).
            overwrite: replace the folder if it exists.

        Raises:
            ValueError: nobody has said which model it is for.
            FileExistsError: the folder exists, and `overwrite` is not set.
            OSError: it cannot be written; nothing is left half-written.
        """
        described = {
            "edit": f"{len(self.heads)} attention heads, z <- (1 + scale) * z + offset",
            "hook_point": lens.z_hook(0).replace(".0.", ".{layer}."),
            "positions": self.positions,
            "heads": [list(head) for head in self.heads],
            "head_scores": None if self.head_scores is None else list(self.head_scores),
        }
        vectors = {name: getattr(self, name) for name in ("scale", "offset") if getattr(self, name) is not None}
        return save_adapter(self, KIND, described, vectors, folder, model, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "HeadIntervention":
        """Read an adapter folder back.

        Args:
            folder: what `save` wrote.
            model: the model it is meant for: an adapter of another base model is refused. None skips that check.

        Raises:
            FileNotFoundError: no adapter there.
            ValueError: truncated, foreign, of an unknown schema, of another kind, or of another base model.
        """
        config, vectors = read_checked_adapter(folder, KIND, model)
        try:
            return cls(
                heads=tuple(Head(*map(int, head)) for head in config["heads"]),
                scale=vectors.get("scale"),
                offset=vectors.get("offset"),
                made_by=config["made_by"],
                head_scores=None if config["head_scores"] is None else tuple(map(float, config["head_scores"])),
                base_model=config["base_model"],
                positions=config.get("positions", "all"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(folder, error) from error


def _spread(vectors: Float[Tensor, "n d_head"], indices: list[int], n_heads: int) -> Float[Tensor, "head d_head"]:
    """The vectors at their heads' places, zeros at the others; differentiable in the vectors."""
    return vectors.new_zeros(n_heads, vectors.shape[1]).index_copy(0, torch.tensor(indices, device=vectors.device), vectors)


def scores_from_norms(
    vectors: Float[Tensor, "k d_head"], heads: tuple[Head, ...], n_layers: int, n_heads: int, **described: Any
) -> HeadScores:
    """The L2 norm of every head's vector (paper section 3, S = ||A||; published code `lofit_trainer.py`); NaN elsewhere."""
    values = torch.full((n_layers, n_heads), float("nan"))
    values[[h.layer for h in heads], [h.index for h in heads]] = vectors.detach().float().norm(dim=-1).cpu()
    return HeadScores(values, **described)
