"""What happens to a study that is killed, runs out of disk, or is run by several processes at once."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from lofit_lens.activations import collect_z
from lofit_lens.runs import read_run
from lofit_lens.store import RunStore
from lofit_lens.study import Study, retry_study, run_study, study_status
from lofit_lens.tasks import Kinship, Truth

#: Starts processes that work at the study, each a fork of one that has imported everything, which takes long. What they go on
#: from is kept after every step.
NURSERY = """
import os, sys, torch
torch.set_num_threads(1)
from tests.unit.test_study_survives import STUDY
from lofit_lens.store import RunStore
from lofit_lens.study import run_study, work
work.CHECKPOINT_SECONDS = 0.0
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run_study(STUDY, RunStore(line.strip()))
        finally:
            os._exit(int(sys.exc_info()[0] is not None))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SIZES = {"n_train": 16, "n_val": 4, "n_test": 8}
STUDY = Study(
    name="survives",
    models=["tiny-llama"],
    tasks={"kinship": Kinship(**SIZES), "truth": Truth(**SIZES)},
    methods={"lofit": {"choose": {"offset_lr": [1e-2, 1e-1]}, "scale_epochs": 2}, "jola": {"epochs": 2}},
    heads=["own", "others", "random"],
    k=[3],
    seeds=[1],
)
N_KILLS = 25


class Nursery:
    """Runs the study in one process after the other."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.parent = subprocess.Popen([sys.executable, "-c", NURSERY], env=ENVIRONMENT, cwd=ROOT, **pipes)
        self.child = 0

    def start(self, store: RunStore) -> None:
        print(store.root, file=self.parent.stdin, flush=True)
        self.child = int(self.parent.stdout.readline())

    def wait(self) -> int:
        """Of the process that was started last: what it ended with."""
        return int(self.parent.stdout.readline())

    def close(self) -> None:
        self.parent.communicate()


@pytest.fixture(scope="module")
def nurseries() -> Iterator[list[Nursery]]:
    started = [Nursery() for _ in range(2)]
    yield started
    for nursery in started:
        nursery.close()


def assert_same_results(ours: RunStore, theirs: RunStore) -> None:
    assert [folder.name for folder in ours.folders()] == [folder.name for folder in theirs.folders()]
    for one, other in zip(map(read_run, ours.folders()), map(read_run, theirs.folders()), strict=True):
        assert one.evaluation == other.evaluation
        assert one.trials == other.trials
        if one.fit is not None:
            assert one.fit.losses == other.fit.losses
            edits = one.fit.intervention, other.fit.intervention
            assert edits[0].heads == edits[1].heads
            for vectors in ("scale", "offset"):
                pair = [getattr(edit, vectors) for edit in edits]
                assert all(vector is None for vector in pair) or torch.equal(*pair)
    assert {p.name: p.read_text() for p in ours.root.glob("scores/*")} == {
        p.name: p.read_text() for p in theirs.root.glob("scores/*")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, nurseries) -> RunStore:
    """Of a process that nobody has killed."""
    store = RunStore(tmp_path_factory.mktemp("whole"))
    nurseries[0].start(store)
    assert nurseries[0].wait() == 0
    assert set(study_status(STUDY, store)["state"]) == {"done"}
    return store


def test_killed_at_25_random_moments_it_gives_what_it_would_have_given(whole, tmp_path, nurseries):
    store, moments, nursery = RunStore(tmp_path), random.Random(0), nurseries[0]
    work_seconds = sum(entry["total"] for entry in whole.journal())
    kept: dict[Path, int] = {}
    ended = []
    for _ in range(N_KILLS):
        nursery.start(store)
        time.sleep(moments.uniform(0, 2 * work_seconds / N_KILLS))
        os.kill(nursery.child, signal.SIGKILL)
        ended.append(nursery.wait())
        now = {folder: folder.stat().st_mtime_ns for folder in store.folders()}
        assert kept.items() <= now.items(), "what was finished is never done again"
        kept = now
        for folder in kept:
            read_run(folder)  # whole, or not there
    assert ended.count(-signal.SIGKILL) > N_KILLS / 2, "it was at work when it was killed"
    nursery.start(store)
    assert nursery.wait() == 0
    assert set(study_status(STUDY, store)["state"]) == {"done"}
    assert_same_results(store, whole)
    assert not list(store.root.glob("unfinished/*"))
    assert not list(store.root.glob("leases/*.json"))


def test_several_processes_share_the_work(whole, tmp_path, nurseries):
    store, began = RunStore(tmp_path), time.monotonic()
    for nursery in nurseries:
        nursery.start(store)
    assert [nursery.wait() for nursery in nurseries] == [0, 0]
    elapsed = time.monotonic() - began
    assert sum(entry["total"] for entry in store.journal()) > elapsed, "several were at work at once"
    assert_same_results(store, whole)
    done = pd.Series([entry["key"] for entry in store.journal()])
    assert len(done) == done.nunique() == len(whole.journal()), "nothing is done twice"


@contextmanager
def small_disk(folder, size):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root, on Linux")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # tensors may still be mapped from there


def test_a_full_disk_loses_nothing(whole, tmp_path):
    with small_disk(tmp_path / "disk", "700k") as disk:
        with suppress(OSError):  # raised where not even what went wrong can be kept
            run_study(STUDY, RunStore(disk))
        finished = [read_run(folder) for folder in RunStore(disk).folders()]
        assert 0 < len(finished) < len(list(STUDY.cells()))
        copy = shutil.copytree(disk, tmp_path / "copy")
    store = RunStore(copy)
    assert study_status(STUDY, store)["state"].isin(["done", "failed", "blocked", "to do"]).all()
    retry_study(STUDY, store)
    run_study(STUDY, store)
    assert_same_results(store, whole)


def test_activations_that_the_disk_has_no_room_for_are_an_error_and_no_death(tmp_path, llama):
    prompts = ["Ann is the mother of Bob."] * 40
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OSError, match="No space left"):
            collect_z(llama, prompts, [" Yes"] * 40, folder=disk)
        assert not list(disk.iterdir())
