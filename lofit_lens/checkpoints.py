"""Training that was killed goes on where it was, and gives on the CPU what it would have given, bit for bit.

Inside `resumable`, every call of `fitting.train` is a stage, with a file of its own: parameters, AdamW's moments, the state of
every generator that is drawn from, and the losses so far. What was computed ahead of the first step, such as DPO's reference
and residuals below the edit, is computed again. A stage that is finished is read and not trained. Beside the tensors stands
what the stage is determined by, so that another fit's is not taken for it, and a checksum of all.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from lofit_lens.files import check_writable, new_file


class UnusableStageError(ValueError):
    """What was kept of a stage is damaged, or is of another fit."""


@dataclass(frozen=True)
class _Run:
    folder: Path
    every: float
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def next_path(self) -> Path:
        return self.folder / f"stage-{next(self.numbers)}.safetensors"


_RUN: ContextVar[_Run | None] = ContextVar("resumable", default=None)


@contextmanager
def resumable(folder: str | Path, *, every: float = 30.0) -> Iterator[None]:
    """Inside, whatever is trained is kept in a folder; the same code with the same folder goes on from there.

    On the CPU, with as many threads, the result is that of a fit that nobody has killed, bit for bit. Stages are numbered as
    they are trained: one fit, or several in the same order, and one process at a time for each folder.

        with ll.resumable("runs/kinship"):
            fit = ll.methods.LoFiT(k=0.1).fit(model, task, seed=0)

    Args:
        folder: a file for each stage goes there: `stage-1.safetensors`, ... Delete it once the result is safe elsewhere.
        every: seconds between two writes, at least; the end of a stage is written at once.

    Raises:
        ValueError: `every` is negative.
        UnusableStageError: where a stage begins, its file is of another fit or damaged.
        OSError: the folder cannot be written.
    """
    if not every >= 0:
        raise ValueError(f"got every={every}; wanted the seconds between two writes, 0 or more")
    run = _Run(Path(folder), every)
    check_writable(run.folder / "stage-1.safetensors")
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


@dataclass(frozen=True)
class TrainingState:
    """All that changes from step to step.

    Args:
        parameters: what is learned.
        optimiser: of these.
        generators: all that is drawn from.
        losses: of the steps so far, as many as there were.
    """

    parameters: Sequence[Tensor]
    optimiser: torch.optim.Optimizer
    generators: Sequence[torch.Generator]
    losses: list[float] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of all of it, on the CPU."""
        moments = self.optimiser.state_dict()["state"]
        named = {
            **{f"parameter.{i}": parameter for i, parameter in enumerate(self.parameters)},
            **{f"optimiser.{i}.{name}": value for i, own in moments.items() for name, value in own.items()},
            **{f"generator.{i}": generator.get_state() for i, generator in enumerate(self.generators)},
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors` was the copy of, in place."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, i, moment = name.split(".")
                moments.setdefault(int(i), {})[moment] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        for i, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator.{i}"])
        self.losses[:] = tensors["losses"].tolist()


class _Stage:
    """What is kept of one call of `fitting.train`.

    Args:
        path: its file.
        every: seconds between two writes.
        determined_by: what tells it from others, as plain JSON values.
    """

    def __init__(self, path: Path, every: float, determined_by: Mapping[str, Any]) -> None:
        self._path, self._every = path, every
        self._determined_by = json.dumps(determined_by)
        self._written_at = time.monotonic()

    def resume(self, state: TrainingState) -> None:
        """Bring a state to where it was when it was last kept, if it ever was.

        Raises:
            UnusableStageError: the file is of another fit, or damaged.
        """
        if not self._path.exists():
            return
        kept, tensors = self._read()
        got, wanted = json.loads(kept), json.loads(self._determined_by)
        differing = [name for name in {**got, **wanted} if got.get(name) != wanted.get(name)]
        if differing:
            told = "; ".join(f"got {name} {got.get(name)!r}, wanted {wanted.get(name)!r}" for name in differing[:3])
            raise UnusableStageError(
                f"{self._path} is of another fit: {told}; delete the folder to begin anew, or give this fit one of its own"
            )
        state.restore(tensors)

    def keep(self, state: TrainingState, *, finished: bool) -> None:
        """Write the state in one atomic step, if the last time is long enough ago or this is the end.

        Raises:
            OSError: it cannot be written; the file is what it was.
        """
        if not finished and time.monotonic() - self._written_at < self._every:
            return
        tensors = state.tensors()
        metadata = {"determined_by": self._determined_by, "sha256": _checksum(self._determined_by, tensors)}
        with new_file(self._path) as scratch:
            save_file(tensors, scratch, metadata)
        self._written_at = time.monotonic()

    def _read(self) -> tuple[str, dict[str, Tensor]]:
        reason = "its checksum is another"
        try:
            with safetensors.safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies, as the optimiser writes into what it is given, which here is a mapped file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            metadata, tensors, reason = {}, {}, str(error)
        kept = metadata.get("determined_by", "")
        if metadata.get("sha256") != _checksum(kept, tensors):
            raise UnusableStageError(
                f"{self._path} is damaged, or no stage of a fit ({reason}); delete the folder to begin anew"
            )
        return kept, tensors


def resumed(state: TrainingState, n_steps: int, determined_by: Callable[[], Mapping[str, Any]]) -> Callable[[], None]:
    """Bring a stage that begins now to where it was kept last; returns what keeps it, to be called after every step.

    Outside of `resumable`, neither does anything.

    Args:
        state: of the start; changed in place.
        n_steps: of the whole stage.
        determined_by: what tells the stage from others, as plain JSON values.

    Raises:
        UnusableStageError: the stage's file is of another fit, or damaged.
    """
    run = _RUN.get()
    if run is None:
        return lambda: None
    stage = _Stage(run.next_path(), run.every, determined_by())
    stage.resume(state)
    return lambda: stage.keep(state, finished=len(state.losses) == n_steps)


def short_sha256(value: Any) -> str:
    """The start of the digest of plain JSON values, to tell long ones apart by."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of names, dtypes, shapes and all values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256((text + sha256_of_tensors(tensors)).encode()).hexdigest()
