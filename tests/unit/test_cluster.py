"""A study on a real Ray of two nodes on this machine: the numbers of one process, and a node that is killed loses nothing."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lofit_lens.methods import RED
from lofit_lens.runs import read_run
from lofit_lens.store import RunStore
from lofit_lens.study import Study, run_study, study_status
from lofit_lens.tasks import Kinship, Records, Truth

pytest.importorskip("ray")
import ray
from ray.cluster_utils import Cluster

from lofit_lens import cluster
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


class Deadly(RED):
    """A method at which every process dies."""

    def fit(self, model, task, *, seed=0):
        os._exit(1)


@pytest.fixture
def unconnected(monkeypatch):
    """Two nodes of one CPU each."""
    # Workers import the package and these tests as this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [both.add_node(num_cpus=1) for _ in range(2)]
    yield both, nodes
    both.shutdown()


@pytest.fixture
def two_nodes(unconnected):
    """The same, and the driver is connected."""
    ray.init(address=unconnected[0].address, log_to_driver=False)
    yield unconnected
    ray.shutdown()


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
    both, nodes = two_nodes
    store = RunStore(tmp_path)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(run_on_ray, STUDY, store)
        while len(store.folders()) < 3:
            assert not running.done()
            time.sleep(0.02)
        for process in nodes[0].all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)
        both.remove_node(nodes[0], allow_graceful=False)
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


def test_a_model_that_cannot_be_loaded_any_more_is_no_failure_of_its_cells(two_nodes, tmp_path):
    study, store = Study(**{**vars(STUDY), "models": ["tiny-nothing"]}), RunStore(tmp_path)
    store.note_fingerprint("tiny-nothing", study.dtype, "0123456789abcdef")  # so that nobody loads it to tell what is done
    with pytest.raises(ValueError, match=r"^tiny-nothing was left out: no tiny model of family"):
        run_on_ray(study, store)
    assert set(study_status(study, store)["state"]) == {"to do"}


def test_a_cell_at_which_every_process_dies_fails_alone(two_nodes, tmp_path):
    methods = {"deadly": Deadly(), "red": RED(epochs=1)}
    study, store = Study("deadly", ["tiny-llama"], {"kinship": Kinship(**SIZES)}, methods=methods), RunStore(tmp_path)
    run_on_ray(study, store)
    states = study_status(study, store).set_index("item")
    dead = "tiny-llama.kinship.deadly.seed0"
    assert states["state"].to_dict() == {
        "tiny-llama.kinship.base": "done",
        dead: "failed",
        "tiny-llama.kinship.red.seed0": "done",
    }
    assert "5 processes have died here without getting any further" in states.loc[dead, "error"]


def test_a_cluster_is_found_at_its_address_and_its_workers_are_heard(unconnected, tmp_path, capfd):
    both, _ = unconnected
    study, store = Study("far away", ["tiny-llama"], STUDY.tasks), RunStore(tmp_path)
    assert len(run_on_ray(study, store, address=both.address)) == 2
    assert "tiny-llama.kinship.base: kinship exact_match" in capfd.readouterr().err
    assert not ray.is_initialized()


def test_where_no_cluster_is_that_is_said_at_once(tmp_path):
    with pytest.raises(ConnectionError, match=r"no Ray answers at 127\.0\.0\.1:1 \(.*\); wanted HOST:PORT"):
        run_on_ray(STUDY, RunStore(tmp_path), address="127.0.0.1:1")


def test_without_an_address_no_cluster_is_taken_that_happens_to_be_there(unconnected, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", unconnected[0].address)
    with pytest.raises(ValueError, match=r"a worker wants 1 CPUs, 8 GPUs, .* and no node has that: there are [^;]*$"):
        run_on_ray(STUDY, RunStore(tmp_path), gpus=8)


def test_a_model_at_which_every_process_dies_is_left_out_alone(two_nodes, tmp_path, monkeypatch):
    @ray.remote
    def look_at(worker, model, cpus):
        if model == "tiny-gpt2":
            os._exit(1)
        return dict(cluster._worker(worker, cpus).catalogue(model).fingerprints)

    monkeypatch.setattr(cluster, "_look_at", look_at)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    study, store = Study("two models", ["tiny-gpt2", "tiny-llama"], {"kinship": Kinship(**SIZES)}), RunStore(tmp_path)
    with pytest.raises(ValueError, match="tiny-gpt2 was left out: "):
        run_on_ray(study, store)
    assert study_status(study, store).set_index("model")["state"].to_dict() == {"tiny-gpt2": "to do", "tiny-llama": "done"}


def test_a_worker_that_nothing_has_room_for_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(
        ValueError, match=r"a worker wants 1 CPUs, 8 GPUs, 0\.0 GB, and no node has that: there are \d+ CPUs, 0 "
    ):
        run_on_ray(STUDY, RunStore(tmp_path), gpus=8)
    with pytest.raises(ValueError, match=r"a worker wants 1 CPUs, 0 GPUs, 9999\.0 GB"):
        run_on_ray(STUDY, RunStore(tmp_path), memory_gb=9999)


def test_a_cluster_may_yet_get_the_room_that_a_worker_wants(two_nodes, tmp_path, caplog):
    nodes, _ = two_nodes
    bare = Study("bare", STUDY.models, STUDY.tasks)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(run_on_ray, bare, RunStore(tmp_path), cpus=2)
        while "a worker wants 2 CPUs" not in caplog.text:
            assert not running.done()
            time.sleep(0.02)
        nodes.add_node(num_cpus=2)
        assert len(running.result(timeout=300)) == 2


def test_workers_never_share_a_gpu_while_another_is_free(monkeypatch, tmp_path):
    """Ray's numbers of GPUs that are not there: a process keeps the first, as CUDA would, and the task says which that was."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

    @ray.remote(max_retries=cluster.RETRIES)
    def held(room):
        cluster._keep_gpus()
        if room is None:
            os._exit(1)
        (room / str(os.getpid())).touch()
        while len(list(room.iterdir())) < 2:  # both at once, so that each has a process of its own
            time.sleep(0.02)
        return cluster._GPUS[0]

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for i in range(4):
            room = tmp_path / str(i)
            room.mkdir()
            ray.wait([held.options(num_cpus=1, num_gpus=1, max_retries=0).remote(None)])
            task = held.options(num_cpus=1, num_gpus=1)
            assert set(ray.get([task.remote(room), task.remote(room)], timeout=120)) == {"0", "1"}
    finally:
        ray.shutdown()


def test_a_model_is_on_one_gpu_or_split_over_all_that_a_worker_has():
    places = {gpus: _placement(gpus) for gpus in (0, 0.5, 1, 2)}
    assert places == {0: {"device": None}, 0.5: {"device": "cuda"}, 1: {"device": "cuda"}, 2: {"n_devices": 2}}
