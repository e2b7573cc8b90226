"""What a study will cost, before anything is run: which work there is, what is shared, what is done, how long the rest takes.

Work is counted in tokens that go through the model: once to evaluate, and in training twice an epoch (forward, and backward
through frozen weights, which costs as much). A store that has runs of a model knows how long its tokens take; before that, a
token takes 2 operations for each of the model's parameters, as many as the model's name says, at a share of what this machine
multiplies matrices at. Nothing is loaded; texts count four characters a token.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from lofit_lens.bfloat16 import products_in_float32
from lofit_lens.embedded import EMBEDDED
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Cell, Study
from lofit_lens.study.items import GRADIENT_MEASURES, SOURCES, Catalogue, Item, Selection
from lofit_lens.study.work import state_of
from lofit_lens.tasks import Task

CHARACTERS_PER_TOKEN = 4
#: Tokens of an example, where the files of its task are not at hand.
TOKENS_UNKNOWN = 150
#: Of the speed of large matrix products: SmolLM2 and LoFiT's second step on one CPU core.
EFFICIENCY = 0.8
#: Tokens go through the model so often in an epoch of training.
TRAINING_PASSES = 2
#: Bytes of a run, before there is one to look at.
RUN_BYTES = 60_000
#: What a source reads the training texts for, in passes; LoFiT's own first step is counted by its epochs.
PASSES = {"iti": 1, "layer-probes": 1, **dict.fromkeys((*GRADIENT_MEASURES, "greedy-gradient"), TRAINING_PASSES)}
#: How many heads are left out one at a time, where a share is given of a model that has not been loaded.
LEFT_OUT = 24


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Args:
        items: a row for each piece of work: its labels, `item`, `kind`, `state`, `used_by` (how many cells start from it), and
            `seconds`, NaN where the size of the model is not known.
        disk: bytes that what is left will take, without activations and residuals.
        notes: what could not be looked at, and what to do about it.
    """

    items: pd.DataFrame
    disk: float
    notes: tuple[str, ...]

    @property
    def left(self) -> pd.DataFrame:
        """The work that is not done."""
        return self.items.query("state != 'done'")

    @property
    def seconds(self) -> float:
        """For all that is left, one piece after the other; NaN if that is not known."""
        return sum(self.left["seconds"].tolist())

    def by_task(self) -> pd.DataFrame:
        """A row for each model, task and kind of work: its `pieces`, those `done` and `failed`, and `seconds_left`."""
        groups: dict[tuple[str, ...], list[dict[Any, Any]]] = {}
        for row in self.items.to_dict("records"):
            groups.setdefault((row["model"], row["task"], row["kind"]), []).append(row)
        rows = []
        for (model, task, kind), pieces in groups.items():
            counts = {state: sum(piece["state"] == state for piece in pieces) for state in ("done", "failed")}
            left = sum(piece["seconds"] for piece in pieces if piece["state"] != "done")
            rows.append({"model": model, "task": task, "kind": kind, "pieces": len(pieces), **counts, "seconds_left": left})
        return pd.DataFrame(rows)


def plan(study: Study, store: RunStore) -> Plan:
    """Look at what a study has to do on that store, without loading a model."""
    fingerprints = store.fingerprints(study.dtype)
    notes = {
        f"{model!r} is neither a folder nor one of {', '.join(EMBEDDED)}; it will be looked for on the hub": None
        for model in study.models
        if model not in EMBEDDED and not model.startswith("tiny-") and not Path(model).is_dir() and "/" not in model
    }
    catalogue = _Lenient(
        study, {model: fingerprints.get(model, f"of {model}, not loaded yet") for model in study.models}, notes
    )
    seconds = _Seconds(catalogue, store)
    rows = []
    for model in study.models:
        items = catalogue.items(model)
        uses = [catalogue.key(needed) for item in items if (needed := catalogue.needs(item)) is not None]
        for item in items:
            state = state_of(item, catalogue, store)
            rows.append(
                {
                    **item.labels,
                    "item": item.name,
                    "kind": "cell" if isinstance(item, Cell) else "head scores",
                    "state": "to do" if state == "waiting" else state,
                    "used_by": uses.count(catalogue.key(item)),
                    "seconds": seconds.of(item),
                }
            )
    n_left = sum(row["kind"] == "cell" and row["state"] != "done" for row in rows)
    return Plan(pd.DataFrame(rows), n_left * _bytes_of_a_run(store), tuple(notes))


class _Lenient(Catalogue):
    """Goes on where the files of a task are not at hand; nothing that is made of them can then be found in a store."""

    def __init__(self, study: Study, fingerprints: Mapping[str, str], notes: dict[str, None]) -> None:
        super().__init__(study, fingerprints)
        self.notes = notes

    def _task_settings(self, name: str, n_train: int | None) -> dict[str, Any]:
        try:
            return super()._task_settings(name, n_train)
        except FileNotFoundError as error:
            self.notes[str(error)] = None
            task = self.study.task_at(name, n_train)
            return {"task": task.name, "settings": task.settings(), "data": "not at hand"}


class _Seconds:
    """Estimates, by what the store has measured of each model, or else by the model's size."""

    def __init__(self, catalogue: Catalogue, store: RunStore) -> None:
        self.catalogue = catalogue
        self._tokens = cache(lambda name, n_train, split: _tokens(catalogue.study.task_at(name, n_train), split))
        taken = {entry["key"]: entry["total"] for entry in store.journal()}
        self._measured: dict[str, float] = {}
        for model in catalogue.study.models:
            done = [item for item in catalogue.items(model) if catalogue.key(item) in taken and self._passes(item)]
            if done:
                spent = sum(taken[catalogue.key(item)] for item in done)
                self._measured[model] = spent / sum(map(self._passes, done))

    def of(self, item: Item) -> float:
        tokens = self._passes(item)
        if item.model in self._measured:
            return tokens * self._measured[item.model]
        if not tokens:
            return 0.0
        speed = EFFICIENCY * _operations_per_second(self.catalogue.study.dtype)
        return tokens * 2 * _parameters_in(item.model) / speed

    def _passes(self, item: Item) -> float:
        """Tokens that go through the model, as many times as they do."""
        if isinstance(item, Selection):
            if SOURCES[item.source].starts_from == "own scores" or not SOURCES[item.source].of_examples:
                return 0.0
            if item.source == "leave-one-out":
                return (1 + LEFT_OUT) * self._tokens(item.task, item.n_train, "val")
            train = self._tokens(item.task, item.n_train, "train")
            if item.method is None:
                return train * PASSES[item.source]
            method: Any = self.catalogue.selector(item)
            epochs = getattr(method, "offset_epochs" if item.source == "bias" else "scale_epochs", None)
            return train * (1 if epochs is None else TRAINING_PASSES * epochs)
        judged = self._tokens(item.task, item.n_train, self.catalogue.study.split)
        if item.method is None:
            return judged
        methods = self.catalogue.methods(item)
        choosing = len(methods) * self._tokens(item.task, item.n_train, "val") if len(methods) > 1 else 0.0
        train = self._tokens(item.task, item.n_train, "train")
        return judged + choosing + train * sum(map(_passes_of_training, methods))


def _passes_of_training(method: Any) -> float:
    epochs = getattr(method, "offset_epochs", getattr(method, "epochs", None))
    return 1.0 if epochs is None else float(TRAINING_PASSES * epochs)


def _tokens(task: Task, split: Any) -> float:
    """Of all examples of a split, with all answers that are judged."""
    try:
        examples = task.splits[split]
    except FileNotFoundError:
        return TOKENS_UNKNOWN * task.published_sizes.get(split, 300)
    judged = [example.choices if task.metric == "mc1" else (example.answer,) for example in examples]
    return (
        sum(len(e.prompt) + sum(map(len, answers)) for e, answers in zip(examples, judged, strict=True)) / CHARACTERS_PER_TOKEN
    )


def _parameters_in(model: str) -> float:
    """How many its name says (`llama-2-7b`, `gemma-3-270m`); NaN if it says nothing."""
    if model.startswith("tiny-"):
        return 1e5
    found = re.search(r"(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", model.lower())
    return float("nan") if found is None else float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]]


def _operations_per_second(dtype: str) -> float:
    """Of a model. A CPU's units for two-byte numbers are many times as fast on large matrices, but hardly twice on a model."""
    speed = _speed_of_products(dtype)
    is_short_on_cpu = dtype != "float32" and not torch.cuda.is_available()
    return min(speed, 2 * _speed_of_products("float32")) if is_short_on_cpu else speed


@cache
def _speed_of_products(dtype: str) -> float:
    """In products of large matrices; of a CPU by its own time, which others' work does not take from."""
    is_cpu = not torch.cuda.is_available()
    matrix = torch.ones(1024, 1024, dtype=getattr(torch, dtype), device="cpu" if is_cpu else "cuda")
    in_float32 = products_in_float32(matrix.dtype, matrix.device)
    clock = time.process_time if is_cpu else time.perf_counter
    times = []
    for _ in range(5):
        start = clock()
        with in_float32:
            (matrix @ matrix)[0, 0].item()  # waits for the device
        times.append(clock() - start)
    return 2 * 1024**3 / min(times) * (torch.get_num_threads() if is_cpu else 1)


def _bytes_of_a_run(store: RunStore) -> float:
    sizes = [sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) for folder in store.folders()]
    return fmean(sizes) if sizes else RUN_BYTES
