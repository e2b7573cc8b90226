"""Layers that an edit cannot reach are run once.

Offsets at heads in layers >= l leave everything below block l as it was, in every epoch. So all sequences are run up to block l
once, before training, the residual stream that enters it is kept, and every pass starts there: blocks below hand their input
on, and block l gets the stored residual. The logits are bit-equal to the full pass over the same batch; over another batch
composition the stored residual differs from a fresh one as any two batch shapes do, by rounding. Which sequences are run
together depends on their lengths alone, so the store of a fit that goes on after a kill is that of the fit that was killed,
and inside `residuals_shared` fits that resume above the same block on the same texts read what the first of them has kept.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TokenSequence, by_length, run_right_padded
from lofit_lens.checkpoints import short_sha256
from lofit_lens.files import new_file
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model, exact_fingerprint
from lofit_lens.progress import progress

#: Residuals are kept in memory up to this many bytes, the rest on disk.
MEMORY_BUDGET = 4 * 2**30

_SHARED: ContextVar[Path | None] = ContextVar("residuals_shared", default=None)


@contextmanager
def residuals_shared(folder: str | Path) -> Iterator[None]:
    """Inside, residuals below an edit are kept in that folder, and taken from there: the result is the same, bit for bit.

    What fits into memory only, and of models without hooks of anybody's only.
    """
    token = _SHARED.set(Path(folder))
    try:
        yield
    finally:
        _SHARED.reset(token)


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
    """The residual entering block `layer`, of every sequence that it was filled with.

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
        """How to resume for these sequences, right-padded to `width`; None where nothing is stored, and the whole pass is run.

        Args:
            keys: their places in what the store was filled with.
            width: tokens of the batch.
        """
        if self.layer == 0:
            return None
        residuals = [self._read(key) for key in keys]
        padded = residuals[0].new_zeros(len(keys), width, residuals[0].shape[-1])
        for row, residual in enumerate(residuals):
            padded[row, : residual.shape[0]] = residual
        return Resumption(self.layer, padded)

    @torch.no_grad()
    def fill(self, model: LensModel, sequences: Sequence[TokenSequence], token_budget: int) -> None:
        """Run sequences up to the block, those of like length together, without any edit of what is being learned.

        Args:
            model: with nothing attached by the fit.
            sequences: known from then on by their places in here.
            token_budget: padded tokens that go through the model at once.
        """
        if self.layer == 0 or not sequences:
            return
        path = self._shared_file(model, sequences, token_budget)
        if path is not None and path.exists():
            lengths = [len(sequence.read) for sequence in sequences]
            self._kept.update(enumerate(load_file(path)["residuals"].split(lengths)))
            return
        self._run(model, sequences, token_budget)
        if path is not None and self._folder is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as scratch:
                save_file({"residuals": torch.cat([self._read(key) for key in range(len(sequences))])}, scratch)

    def _shared_file(self, model: LensModel, sequences: Sequence[TokenSequence], token_budget: int) -> Path | None:
        folder = _SHARED.get()
        if folder is None or lens.is_hooked(model):
            return None
        texts = [(sequence.prompt, sequence.answer) for sequence in sequences]
        wanted = [exact_fingerprint(model), self.layer, token_budget, texts]
        return folder / f"{short_sha256(wanted)}.safetensors"

    def _run(self, model: LensModel, sequences: Sequence[TokenSequence], token_budget: int) -> None:
        tokens_of = [sequence.read for sequence in sequences]
        with progress(None, "layers below the edit", total=len(sequences)) as bar:
            for keys in by_length(map(len, tokens_of), token_budget):
                prompt_lengths = [len(sequences[key].prompt) for key in keys]
                with lens.ending_early(model, [self._keep_hook(keys, [len(tokens_of[key]) for key in keys])]):
                    run_right_padded(model, [tokens_of[key] for key in keys], prompt_lengths)
                bar.update(len(keys))

    def _keep_hook(self, keys: Sequence[int], lengths: Sequence[int]) -> tuple[str, Any]:
        """Keeps the residuals of the pass, without padding, and ends it."""

        def keep(value: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
            for key, length, residual in zip(keys, lengths, value, strict=True):
                self._write(key, residual[:length].cpu())
            raise lens.AllSeenError

        return lens.resid_pre_hook(self.layer), keep

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
