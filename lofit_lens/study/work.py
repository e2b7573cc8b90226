"""Doing one item of a study: compute, store, and mark what cannot be done; the loaded model stays for the next item."""

import gc
import json
import logging
import shutil
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from lofit_lens.bfloat16 import products_in_float32
from lofit_lens.checkpoints import resumable
from lofit_lens.evaluation import check_evaluation, evaluate
from lofit_lens.files import write_json_atomically
from lofit_lens.frozen import residuals_shared
from lofit_lens.heads import head_count
from lofit_lens.lens import LensModel, model_device
from lofit_lens.methods import Fit
from lofit_lens.models import check_model, exact_fingerprint, load_model
from lofit_lens.runs import Run, environment_of
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Cell, Study
from lofit_lens.study.items import Catalogue, Item, Selection, pool_size, selection_of
from lofit_lens.study.sources import scores_for, stored_scores, with_shared_activations
from lofit_lens.tracking import Service, send_run

logger = logging.getLogger(__name__)

State = Literal["done", "failed", "blocked", "waiting", "to do"]
#: So often may a process die at an item without getting any further before the item is left alone.
MAX_DEATHS = 5
#: Between two looks back that a killed process could go on from.
CHECKPOINT_SECONDS = 30.0


@dataclass
class Worker:
    """Does items of a study, one after the other.

    Args:
        study: the grid.
        store: where results go.
        accept_license: licences that the user accepts, for models that ask.
        device: of the models.
        n_devices: to split a model's layers over.
        track: a service that finished runs are sent to.
    """

    study: Study
    store: RunStore
    accept_license: Collection[str] = ()
    device: str | None = None
    n_devices: int = 1
    track: Service | None = None
    _loaded: tuple[str, LensModel] | None = field(default=None, init=False, repr=False)
    _seconds: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def catalogue(self, model_name: str) -> Catalogue:
        """What determines the items of that model, which is loaded if nobody has said yet which it is."""
        if model_name not in self.store.fingerprints(self.study.dtype):
            self.model(model_name)
        return Catalogue(self.study, self.store.fingerprints(self.study.dtype))

    def model(self, name: str) -> LensModel:
        """The model; the one before is let go of.

        Raises:
            ValueError: it cannot be loaded, is another than the store has runs of, or has fewer heads than k.
        """
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            gc.collect()
            with self._timed("load"):
                dtype = getattr(torch, self.study.dtype)
                placement = {"device": self.device, "n_devices": self.n_devices}
                try:
                    model = load_model(name, dtype=dtype, accept_license=self.accept_license, **placement)
                except (OSError, RuntimeError, ImportError) as error:  # no licence, no connection, no room
                    raise ValueError(f"cannot load model {name!r}: {error}") from error
            self._refuse_another(name, exact_fingerprint(model))
            self._refuse_more_heads_than(len(check_model(model).all_heads))
            self._loaded = name, model
        return self._loaded[1]

    def _refuse_more_heads_than(self, n_heads: int) -> None:
        for cell in self.study.cells():
            if cell.k is not None:
                head_count(cell.k, n_heads)
                if cell.heads == "leave-one-out":
                    head_count(pool_size(cell.k), n_heads)

    def _refuse_another(self, name: str, found: str) -> None:
        known = self.store.fingerprints(self.study.dtype).get(name, found)
        if known != found:
            raise ValueError(
                f"{name!r} is another model ({found}) than the one that {self.store.root} has runs of ({known}); use another "
                "store, or another name for one of them"
            )
        self.store.note_fingerprint(name, self.study.dtype, found)

    def attempt(self, item: Item, catalogue: Catalogue) -> bool:
        """Do an item that waits for nothing, unless somebody else is at it; whether it was ours.

        Whatever goes wrong with the item itself is kept beside its key, and is not raised.

        Raises:
            ValueError: the model cannot be loaded.
            OSError: what went wrong cannot be kept either.
        """
        key = catalogue.key(item)
        with self.store.lease(key) as is_ours:
            if not is_ours:
                return False
            if state_of(item, catalogue, self.store) != "to do":  # somebody was faster
                return True
            # The model may have been loaded before, for its fingerprint.
            started = time.monotonic() - sum(self._seconds.values())
            model = self.model(item.model)
            folder = self.store.unfinished_folder(key)
            found = None
            try:
                with _counting_deaths(folder) as spent_before:
                    if spent_before:
                        self._seconds["scores" if isinstance(item, Selection) else "fit"] = spent_before
                        started -= spent_before
                    with products_in_float32(model.cfg.dtype, model_device(model)):
                        found = self._do(model, item, catalogue, folder / "fit")
            except Exception as error:
                self.mark(item, catalogue, error)
            if found is None:
                gc.collect()  # what did not fit into memory goes with the frames of its error
            else:
                total = time.monotonic() - started
                logger.info("%s: %s, %.0f s", item.name, found, total)
                self.store.note({"item": item.name, "key": key, "seconds": self._seconds, "total": total})
                shutil.rmtree(folder, ignore_errors=True)
            self._seconds = {}
            return True

    def _do(self, model: LensModel, item: Item, catalogue: Catalogue, folder: Path) -> str:
        """Do it, and say in short what came out."""
        settings = catalogue.settings(item)
        if isinstance(item, Selection):
            with self._timed("scores"), resumable(folder, every=CHECKPOINT_SECONDS):
                scores = scores_for(model, item, catalogue, self.store)
            if not scores.rank():
                raise ArithmeticError("every score is NaN, and no head can be chosen by that")
            self.store.put_scores(settings, scores, item.labels)
            return f"first {scores.rank()[0].label}"
        task = self.study.task_at(item.task, item.n_train)
        # What cannot be judged is not trained.
        check_evaluation(model, task, split=self.study.split, metric=self.study.metric)
        fit, trials = (None, ()) if item.method is None else self._fit(model, item, catalogue, folder)
        with self._timed("evaluate"):
            edit = None if fit is None else fit.intervention
            evaluation = evaluate(model, task, edit, split=self.study.split, metric=self.study.metric)
        run = Run(settings, fit, evaluation, item.labels, self._parts(), trials, environment_of(model))
        stored = self.store.put(run, model)
        if self.track is not None:
            send_run(stored, self.track, project=self.study.name)
        return str(evaluation)

    def _fit(
        self, model: LensModel, cell: Cell, catalogue: Catalogue, folder: Path
    ) -> tuple[Fit[Any], tuple[dict[str, Any], ...]]:
        """The fit, and what was tried if something was chosen."""
        assert cell.seed is not None
        task = self.study.task_at(cell.task, cell.n_train)
        methods = catalogue.methods(cell)
        if (selection := selection_of(cell)) is not None:
            # A share is one of all heads, of which leave-one-out has scored a few.
            count = head_count(cell.k or 1, len(check_model(model).all_heads))
            heads = stored_scores(selection, catalogue, self.store).top(count)
            methods = tuple(replace(method, heads=heads) for method in methods)
        methods = tuple(with_shared_activations(method, self.store) for method in methods)
        if len(methods) > 1:
            check_evaluation(model, task, split="val", metric=self.study.metric)
        fits, values = [], []
        with resumable(folder, every=CHECKPOINT_SECONDS), residuals_shared(self.store.residuals_folder):
            for method in methods:
                with self._timed("fit"):
                    fits.append(method.fit(model, task, seed=cell.seed))
                if len(methods) > 1:
                    with self._timed("choose"):
                        values.append(evaluate(model, task, fits[-1].intervention, split="val", metric=self.study.metric).value)
        if len(methods) == 1:
            return fits[0], ()
        trials = tuple({"settings": m.settings(), "val": value} for m, value in zip(methods, values, strict=True))
        return fits[values.index(max(values))], trials

    def _parts(self) -> dict[str, float]:
        """Seconds of what belongs to the item itself, which loading the model does not."""
        return {part: seconds for part, seconds in self._seconds.items() if part != "load"}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[part] = round(self._seconds.get(part, 0.0) + time.monotonic() - start, 3)

    def mark(self, item: Item, catalogue: Catalogue, error: Exception) -> None:
        """Keep what went wrong with an item.

        Raises:
            OSError: it cannot be written.
        """
        name = item.name
        logger.error("%s failed: %s: %s", name, type(error).__name__, error)
        failure = {
            "item": name,
            "labels": item.labels,
            "error": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exception(error),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.store.mark_failed(catalogue.key(item), failure)


@contextmanager
def _counting_deaths(folder: Path) -> Iterator[float]:
    """Inside, work is under way; a process that dies leaves a note, and the next one counts.

    Yields:
        Seconds that earlier attempts took for what they have left to go on from.

    Raises:
        MemoryError: too many have died here without getting any further.
    """
    note = folder / "attempt.json"
    deaths, spent = 0, 0.0
    if (found := _attempt(folder)) is not None:
        deaths = found["deaths"] + 1 if found["reached"] == _reached(folder) else 1
        spent = _spent(folder, found["spent"])
    at_rest = {"deaths": -1, "reached": _reached(folder), "spent": spent}
    if deaths >= MAX_DEATHS:
        write_json_atomically(note, at_rest)
        raise MemoryError(
            f"{deaths} processes have died here without getting any further, each killed or out of memory; give it more time "
            "or memory, or make the task or the token budget smaller, and try again"
        )
    write_json_atomically(note, {**at_rest, "deaths": deaths})
    try:
        yield spent
    finally:
        write_json_atomically(note, {"deaths": -1, "reached": _reached(folder), "spent": _spent(folder, spent)})


def _attempt(folder: Path) -> dict[str, Any] | None:
    """What the last attempt at it has noted: how many had died there before, -1 if it has ended otherwise."""
    with suppress(FileNotFoundError):
        return json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
    return None


def _reached(folder: Path) -> list[str]:
    return sorted(f"{path.name} {path.stat().st_mtime_ns}" for path in folder.glob("fit/*"))


def _spent(folder: Path, before: float) -> float:
    """Seconds, with those of the last attempt: from its note to the last file that it has left to go on from."""
    started = (folder / "attempt.json").stat().st_mtime
    return round(before + max([0.0, *(path.stat().st_mtime - started for path in folder.glob("fit/*"))]), 3)


def state_of(item: Item, catalogue: Catalogue, store: RunStore) -> State:
    """Where an item stands: "waiting" for another, "blocked" by one that failed."""
    settings, key = catalogue.settings(item), catalogue.key(item)
    find = store.find_scores if isinstance(item, Selection) else store.find
    if find(settings) is not None:
        return "done"
    if store.failure(key) is not None:
        return "failed"
    needed = catalogue.needs(item)
    if needed is not None and (state := state_of(needed, catalogue, store)) != "done":
        return "blocked" if state in ("failed", "blocked") else "waiting"
    return "to do"


def first_to_do(item: Item, catalogue: Catalogue, store: RunStore) -> Item:
    """The item, or what it waits for."""
    while state_of(item, catalogue, store) == "waiting":
        needed = catalogue.needs(item)
        assert needed is not None, "an item waits for what it needs"
        item = needed
    return item


def deaths(folder: Path) -> int:
    """How often a process has died at what is kept in that folder, since it last got any further."""
    found = _attempt(folder)
    return 0 if found is None else found["deaths"] + 1
