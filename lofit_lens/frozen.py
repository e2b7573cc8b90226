"""Layers that an edit cannot reach are run once.

Offsets at heads in layers >= l leave everything below block l as it was, in every epoch. So the residual stream that enters
block l is kept for each sequence the first time it passes, and later passes start there: blocks below hand their input on,
and block l gets the stored residual. The logits are bit-equal to the full pass over the same batch; over another batch
composition the stored residual differs from a fresh one as any two batch shapes do, by rounding.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from lofit_lens import lens
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model

#: Residuals are kept in memory up to this many bytes, the rest on disk.
MEMORY_BUDGET = 4 * 2**30


@dataclass(frozen=True)
class Resumption:
    """A pass that starts at block `layer` with a known residual."""

    layer: int
    residual: Float[Tensor, "batch pos d_model"]

    @contextmanager
    def applied(self, model: LensModel) -> Iterator[None]:
        put = (lens.resid_pre_hook(self.layer), lambda value, hook: self.residual.to(value.device))
        with lens.bypassed(model, self.layer), model.hooks(fwd_hooks=[put]):
            yield


class ResidualStore:
    """The residual entering block `layer`, of every sequence that has passed once.

    Args:
        model: the model.
        layer: the lowest layer that is edited. 0, or an architecture that cannot resume, stores nothing.
        memory_budget: bytes to keep in memory; what is beyond goes to a temporary folder, removed by `close`.
    """

    def __init__(self, model: LensModel, layer: int, memory_budget: int = MEMORY_BUDGET) -> None:
        self.layer = layer if check_model(model).can_resume else 0
        self._memory_left = memory_budget
        self._kept: dict[int, Tensor | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def resumption(self, keys: Sequence[int], width: int) -> Resumption | None:
        """How to resume for these sequences, right-padded to `width`; None while one of them has not passed yet."""
        if self.layer == 0 or any(key not in self._kept for key in keys):
            return None
        residuals = [self._read(key) for key in keys]
        padded = residuals[0].new_zeros(len(keys), width, residuals[0].shape[-1])
        for row, residual in enumerate(residuals):
            padded[row, : residual.shape[0]] = residual
        return Resumption(self.layer, padded)

    @contextmanager
    def recording(self, model: LensModel, keys: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
        """Keep the residuals of the pass that runs inside; `lengths` are the sequences' own, without padding."""
        if self.layer == 0:
            yield
            return

        def keep(value: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
            for key, length, residual in zip(keys, lengths, value.detach(), strict=True):
                self._write(key, residual[:length].cpu())

        with model.hooks(fwd_hooks=[(lens.resid_pre_hook(self.layer), keep)]):
            yield

    def _write(self, key: int, residual: Tensor) -> None:
        size = residual.numel() * residual.element_size()
        if size <= self._memory_left:
            self._memory_left -= size
            self._kept[key] = residual.clone()
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lofit-lens-residuals-")
        path = Path(self._folder.name) / f"{key}.safetensors"
        save_file({"residual": residual.contiguous()}, path)
        self._kept[key] = path

    def _read(self, key: int) -> Tensor:
        kept = self._kept[key]
        return load_file(kept)["residual"] if isinstance(kept, Path) else kept

    def close(self) -> None:
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
