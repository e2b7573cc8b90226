"""A study on a Ray cluster: every piece of work is a Ray task, and Ray does the scheduling.

A cell's task waits for the task that makes its head scores, as Ray's object references say. Ray runs task after task in the
same worker processes, each of which keeps the model that it has loaded. A task whose process or node dies is run again
elsewhere, and goes on from what it had kept. Results go through the store, a folder that all nodes see; only words go back to
the driver.
"""

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from lofit_lens.progress import progress
from lofit_lens.store import RunStore
from lofit_lens.study import Catalogue, Item, Study, Worker, state_of, study_table
from lofit_lens.study.local import PATIENCE
from lofit_lens.study.work import first_to_do
from lofit_lens.tracking import Service

logger = logging.getLogger(__name__)

#: So often is a task run again whose process or node has died.
RETRIES = 5


def run_on_ray(
    study: Study,
    store: RunStore,
    *,
    address: str | None = None,
    cpus: int = 1,
    gpus: float = 0,
    memory_gb: float | None = None,
    track: Service | None = None,
    accept_license: Collection[str] = (),
) -> pd.DataFrame:
    """Do what the store lacks of a study on a Ray cluster; the same results as `run_study` with as many threads.

    Args:
        study: the grid.
        store: in a folder that every node sees under the same path.
        address: of the cluster ("auto", "ray://host:10001"); None starts Ray on this machine, for as long as this takes.
        cpus: of a worker, and its threads.
        gpus: of a worker; a share below 1 lets several have one, over two or more a model's layers are split.
        memory_gb: that Ray sets aside for a worker; None sets nothing aside.
        track: also send finished runs to "wandb" or "trackio", which must be installed on the workers.
        accept_license: licences that you accept, for models that ask.

    Returns:
        `study_table`: one row for each cell that is done.

    Raises:
        FileNotFoundError: a task's files are not at hand; before anything is run.
        ValueError: a model cannot be loaded; the other models' items are done first.
        ConnectionError: there is no cluster at that address.
        OSError: the store cannot be written.
    """
    study.check_data()
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
    if memory_gb is not None:
        options["memory"] = int(memory_gb * 2**30)
    refused: dict[str, str] = {}
    with _connected(address):
        # In a list, as Ray would copy what a bare reference refers to into every task.
        worker = [ray.put(Worker(study, store, tuple(accept_license), **_placement(gpus), track=track))]
        for model in study.models:
            try:
                fingerprints = ray.get(_look_at.options(**options).remote(worker, model, cpus))
            except RayTaskError as error:
                logger.error("%s is left out: %s", model, error.cause)
                refused[model] = str(error.cause)
                continue
            _run_model(Catalogue(study, fingerprints), model, worker, store, options)
    if refused:
        raise ValueError("; ".join(f"{model} was left out: {reason}" for model, reason in refused.items()))
    return study_table(study, store)


def _placement(gpus: float) -> dict[str, Any]:
    """Of a worker's model."""
    return {"n_devices": int(gpus)} if gpus >= 2 else {"device": "cuda" if gpus else None}


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=True)
    try:
        yield
    finally:
        ray.shutdown()


def _run_model(catalogue: Catalogue, model: str, worker: Any, store: RunStore, options: dict[str, Any]) -> None:
    references: dict[str, Any] = {}
    items: dict[Any, Item] = {}
    for item in catalogue.items(model):
        if state_of(item, catalogue, store) == "done":
            continue
        needed = catalogue.needs(item)
        behind = [] if needed is None else [references[key] for key in [catalogue.key(needed)] if key in references]
        task = _do.options(**options, name=item.name)
        reference = task.remote(worker, item, dict(catalogue.fingerprints), options["num_cpus"], *behind)
        references[catalogue.key(item)] = reference
        items[reference] = item
    waiting = list(items)
    with progress(None, f"{catalogue.study.name}: {model}", total=len(waiting)) as bar:
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            bar.update()
            try:
                ray.get(done)
            except RayError as error:
                # Its process died once too often, or what it waited for did: the rest goes on.
                Worker(catalogue.study, store).mark(items[done], catalogue, error)


#: The worker of this process, with the model that it has loaded, by the reference that it was sent under.
_HERE: dict[str, Worker] = {}


def _worker(worker: Any, cpus: int) -> Worker:
    """What the list of one reference refers to; every look makes a copy, with no model."""
    (reference,) = worker
    if reference.hex() not in _HERE:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        torch.set_num_threads(cpus)
        _HERE.clear()
        _HERE[reference.hex()] = ray.get(reference)
    return _HERE[reference.hex()]


@ray.remote
def _look_at(worker: Any, model: str, cpus: int) -> dict[str, str]:
    """The fingerprints of the models, for which this one is loaded if nobody has yet."""
    return dict(_worker(worker, cpus).catalogue(model).fingerprints)


@ray.remote
def _do(worker: Any, item: Item, fingerprints: dict[str, str], cpus: int, *behind: None) -> None:
    """Do an item, once those before it are done; what goes wrong with it is kept in the store."""
    here = _worker(worker, cpus)
    catalogue = Catalogue(here.study, fingerprints)
    while state_of(item, catalogue, here.store) in ("to do", "waiting"):
        if not here.attempt(first_to_do(item, catalogue, here.store), catalogue):
            time.sleep(PATIENCE)
