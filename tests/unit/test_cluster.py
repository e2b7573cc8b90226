"""A study on a real Ray of two nodes on this machine: the numbers of one process, and a node that is killed loses nothing."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lofit_lens.runs import read_run
from lofit_lens.store import RunStore
from lofit_lens.study import Study, run_study, study_status
from lofit_lens.tasks import Kinship, Records, Truth

pytest.importorskip("ray")
import ray
from ray.cluster_utils import Cluster

from lofit_lens.cluster import _placement, run_on_ray

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
SIZES = {"n_train": 16, "n_val": 2, "n_test": 8}
STUDY = Study(
    name="on two nodes",
    models=["tiny-llama"],
    tasks={"kinship": Kinship(**SIZES), "truth": Truth(**SIZES)},
    methods={"lofit": {"scale_epochs": 1, "offset_epochs": 2}},
    heads=["own", "others", "random", "random-like-own"],
    k=[2],
    seeds=[0, 1],
)


@pytest.fixture
def two_nodes(monkeypatch):
    """Two nodes of one CPU each; the driver is connected."""
    # Workers import the package and these tests as this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What one process makes of the study."""
    store = RunStore(tmp_path_factory.mktemp("here"))
    run_study(STUDY, store)
    return store


def assert_same_numbers(ours, theirs):
    assert [folder.name for folder in ours.folders()] == [folder.name for folder in theirs.folders()]
    for one, other in zip(map(read_run, ours.folders()), map(read_run, theirs.folders()), strict=True):
        assert one.evaluation == other.evaluation
        if one.fit is not None:
            assert one.fit.losses == other.fit.losses
            assert torch.equal(one.fit.intervention.offset, other.fit.intervention.offset)


def test_two_nodes_give_what_one_process_gives(two_nodes, here, tmp_path):
    store = RunStore(tmp_path)
    table = run_on_ray(STUDY, store)
    assert len(table) == len(list(STUDY.cells()))
    assert_same_numbers(store, here)
    loads = [entry for entry in store.journal() if "load" in entry["seconds"]]
    assert len(loads) <= 2, "a worker keeps the model that it has loaded"


def test_a_model_stays_loaded_for_tasks_that_no_copy_equals(two_nodes, tmp_path):
    records = {split: [{"q": "q", "a": "a"}] for split in ("train", "val", "test")}
    tasks = {f"mine{i}": Records(records, prompt=f"{i} {{q}}", answer="{a}") for i in range(6)}
    store = RunStore(tmp_path)
    assert len(run_on_ray(Study("records", ["tiny-llama"], tasks), store)) == 6
    assert len([entry for entry in store.journal() if "load" in entry["seconds"]]) <= 2


def test_a_node_that_is_killed_loses_nothing(two_nodes, here, tmp_path):
    cluster, nodes = two_nodes
    store = RunStore(tmp_path)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(run_on_ray, STUDY, store)
        while len(store.folders()) < 3:
            assert not running.done()
            time.sleep(0.02)
        for process in nodes[0].all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert len(store.folders()) < len(list(STUDY.cells()))
        running.result(timeout=300)
    assert set(study_status(STUDY, store)["state"]) == {"done"}
    assert_same_numbers(store, here)


def test_what_goes_wrong_on_a_worker_is_kept_and_said(two_nodes, tmp_path):
    study, store = Study(**{**vars(STUDY), "methods": {"lofit": {"scale_lr": 1e30, "offset_lr": 1e30}}}), RunStore(tmp_path)
    run_on_ray(study, store)
    states = study_status(study, store)
    assert {"done", "failed", "blocked"} >= set(states["state"])
    failed = states[states["state"] == "failed"]
    assert failed["kind"].tolist() == ["head scores"] * 4
    assert failed["error"].str.contains("Error: ").all()
    nothing = Study(**{**vars(STUDY), "models": ["tiny-nothing"], "methods": {}})
    with pytest.raises(ValueError, match="tiny-nothing was left out: no tiny model of family"):
        run_on_ray(nothing, store)


def test_a_model_is_on_one_gpu_or_split_over_all_that_a_worker_has():
    places = {gpus: _placement(gpus) for gpus in (0, 0.5, 1, 2)}
    assert places == {0: {"device": None}, 0.5: {"device": "cuda"}, 1: {"device": "cuda"}, 2: {"n_devices": 2}}
