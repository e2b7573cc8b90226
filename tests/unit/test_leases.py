"""Leases: one holder at a time, and none that outlives its holder."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lofit_lens.leases import is_leased, leased, this_host


@pytest.fixture
def path(tmp_path):
    return tmp_path / "leases" / "key.json"


def pretend_held(path, *, pid, host, age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"token": "another", "host": host, "pid": pid}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_one_holder_at_a_time(path):
    with leased(path) as first:
        assert first
        assert is_leased(path)
        with leased(path) as second:
            assert not second
        assert is_leased(path), "who was turned away has not let go of it"
    assert not is_leased(path)
    assert not path.exists()
    with leased(path) as again:
        assert again


def test_an_exception_lets_go_of_it(path):
    with pytest.raises(RuntimeError, match="inside"), leased(path):
        raise RuntimeError("inside")
    assert not is_leased(path)


def test_of_many_at_once_exactly_one_gets_it(path):
    everybody_tried = threading.Barrier(8)

    def try_it(_):
        with leased(path) as is_ours:
            everybody_tried.wait(timeout=60)
        return is_ours

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(try_it, range(8))) == 1


def test_a_dead_process_of_this_host_holds_nothing(path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    pretend_held(path, pid=process.pid, host=this_host())
    assert not is_leased(path)
    with leased(path) as is_ours:
        assert is_ours


def test_what_another_host_holds_ends_without_signs_of_life(path):
    pretend_held(path, pid=1, host="elsewhere", age=50)
    assert is_leased(path, ttl=60)
    with leased(path, ttl=60) as is_ours:
        assert not is_ours
    pretend_held(path, pid=1, host="elsewhere", age=70)
    assert not is_leased(path, ttl=60)
    with leased(path, ttl=60) as is_ours:
        assert is_ours


def test_a_holder_gives_signs_of_life(path):
    with leased(path, ttl=0.4):
        time.sleep(1.0)
        assert is_leased(path, ttl=0.4)


def test_who_has_lost_a_lease_leaves_the_new_holders_alone(path):
    with leased(path, ttl=60):
        pretend_held(path, pid=os.getpid(), host="elsewhere")
    assert json.loads(path.read_text())["token"] == "another"
