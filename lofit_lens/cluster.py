"""A study on a Ray cluster: every piece of work is a Ray task, and Ray does the scheduling.

A cell's task waits for the task that makes its head scores, as Ray's object references say. Ray runs task after task in the
same worker processes, each of which keeps the model that it has loaded. A task whose process or node dies is run again
elsewhere, and goes on from what it had kept. Results go through the store, a folder that all nodes see; only words go back to
the driver.
"""

import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
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

#: So often is a task run again whose process or node has died; `work.MAX_DEATHS` ends what kills every process before.
RETRIES = 10
#: That the head of a cluster has to take a connection.
SECONDS_TO_ANSWER = 20


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
        address: of the cluster ("auto" on one of its nodes, or "host:6379"); None starts Ray on this machine, for as long as
            this takes.
        cpus: of a worker, and its threads.
        gpus: of a worker; a share below 1 lets several have one, over two or more a model's layers are split.
        memory_gb: that Ray sets aside for a worker; None sets nothing aside.
        track: also send finished runs to "wandb" or "trackio", which must be installed on the workers.
        accept_license: licences that you accept, for models that ask.

    Returns:
        `study_table`: one row for each cell that is done.

    Raises:
        FileNotFoundError: a task's files are not at hand; before anything is run.
        ValueError: a model cannot be loaded, and the other models' items are done first; or this machine has no room for a
            worker. (Where a cluster has none, that is said, and waited for.)
        ConnectionError: there is no cluster at that address.
        OSError: the store cannot be written.
    """
    study.check_data()
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
    if memory_gb is not None:
        options["memory"] = int(memory_gb * 2**30)
    refused: dict[str, str] = {}
    is_only_here = address is None and not ray.is_initialized()
    with _connected(address):
        if shortage := _shortage(cpus, gpus, memory_gb):
            if is_only_here:
                raise ValueError(shortage)
            logger.warning("%s; waiting for one that does", shortage)
        # In a list, as Ray would copy what a bare reference refers to into every task.
        worker = [ray.put(Worker(study, store, tuple(accept_license), **_placement(gpus), track=track))]
        for model in study.models:
            if reason := _run_model(study, model, worker, store, options):
                refused[model] = reason
                logger.error("%s is left out: %s", model, reason)
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
    if address is not None:
        _check_answers(address)
        logger.info("connecting to Ray at %s", address)
    # None would take a cluster that RAY_ADDRESS names, or that runs on this machine.
    ray.init(address=address or "local", include_dashboard=False if address is None else None, log_to_driver=True)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Where nobody listens, Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # such as "auto", which Ray looks up on this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray answers at {address} ({error}); wanted HOST:PORT that `ray start --head` says, or auto on one of its nodes"
        ) from error


def _shortage(cpus: int, gpus: float, memory_gb: float | None) -> str | None:
    """Why no node has room for a worker now, if that is so."""
    wanted = {"CPU": cpus, "GPU": gpus, "memory": (memory_gb or 0) * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        return None
    had = "; ".join(_resources_text(node) for node in nodes)
    return f"a worker wants {_resources_text(wanted)}, and no node has that: there are {had}"


def _resources_text(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPUs, {gpus:g} GPUs, {memory / 2**30:.1f} GB"


def _run_model(study: Study, model: str, worker: Any, store: RunStore, options: dict[str, Any]) -> str | None:
    """Do what can be done of a model's items.

    Returns:
        Why some could not be tried, such as that the model cannot be loaded; None if all were.
    """
    try:
        fingerprints = ray.get(_look_at.options(**options).remote(worker, model, options["num_cpus"]))
    except RayError as error:
        # What was raised there, or the death of too many processes.
        return str(getattr(error, "cause", error))
    catalogue = Catalogue(study, fingerprints)
    raised = None
    references: dict[str, Any] = {}
    items: dict[Any, Item] = {}
    for item in catalogue.items(model):
        if state_of(item, catalogue, store) == "done":
            store.clear_up(catalogue.key(item))
            continue
        needed = catalogue.needs(item)
        behind = [] if needed is None else [references[key] for key in [catalogue.key(needed)] if key in references]
        task = _do.options(**options, name=item.name)
        reference = task.remote(worker, item, dict(catalogue.fingerprints), options["num_cpus"], *behind)
        references[catalogue.key(item)] = reference
        items[reference] = item
    waiting = list(items)
    with progress(None, f"{study.name}: {model}", total=len(waiting)) as bar:
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            bar.update()
            try:
                ray.get(done)
            except RayTaskError as error:
                raised = raised or str(error.cause)  # of those that wait for it, the error is the same
            except RayError as error:
                # Its process died once too often, or what it waited for did: the rest goes on.
                if state_of(items[done], catalogue, store) in ("to do", "waiting"):
                    Worker(study, store).mark(first_to_do(items[done], catalogue, store), catalogue, error)
    return raised


#: The worker of this process, with the model that it has loaded, by the reference that it was sent under.
_HERE: dict[str, Worker] = {}
#: The GPUs that this process has been given, by Ray's numbers.
_GPUS: list[str] = []


def _keep_gpus() -> None:
    """End this process if its GPUs are not those that it was first given: CUDA stays where it has begun, while Ray may give the
    next task another card, and this one to a neighbour. Ray runs the task again, in a new process.
    """
    given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if _GPUS and given != _GPUS:
        logging.warning("leaving GPU %s for %s; the task is run again in a new process", ",".join(_GPUS), ",".join(given))
        logging.shutdown()
        os._exit(1)
    _GPUS[:] = given


def _worker(worker: Any, cpus: int) -> Worker:
    """What the list of one reference refers to; every look makes a copy, with no model."""
    _keep_gpus()
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
