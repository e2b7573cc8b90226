"""The demonstration on a tiny random model: what it writes, and that a kill loses nothing but the run at hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from lofit_lens import HeadScores, load_result
from lofit_lens.analysis import TransferTable

SCRIPT = """
import signal
import sys
from lofit_lens import cli, demo
from lofit_lens.tasks import Counterfactual, Kinship, Truth

# As on a terminal: a shell starts background jobs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
size = {"n_train": 8, "n_val": 1, "n_test": 8}
demo.TASKS = (Kinship(**size), Counterfactual(**size), Truth(**size))
sys.argv = ["lofit-lens", "demo", "--model", "tiny-llama", "--out", sys.argv[1]]
cli.main()
"""
COMMAND = [sys.executable, "-c", SCRIPT]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def finished_runs(out: Path) -> list[Path]:
    return sorted(out.glob("runs/[!.]*/run.json"))


def test_killed_and_started_again_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*COMMAND, str(whole)], check=True, capture_output=True, env=ENVIRONMENT)

    process = subprocess.Popen([*COMMAND, str(killed)], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    while len(finished_runs(killed)) < 4:
        assert process.poll() is None, "the demo ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {run.parent.name: run.stat().st_mtime_ns for run in finished_runs(killed)}
    assert 4 <= len(kept) < len(finished_runs(whole))

    again = subprocess.run([*COMMAND, str(killed)], check=True, capture_output=True, text=True, env=ENVIRONMENT)
    (done_before,) = re.findall(r"15 cells, (\d+) of them done before", again.stdout)
    assert int(done_before) >= len(kept)
    assert [run.parent.name for run in finished_runs(killed)] == [run.parent.name for run in finished_runs(whole)]
    assert kept.items() <= {run.parent.name: run.stat().st_mtime_ns for run in finished_runs(killed)}.items()
    for name in ("transfer", "kinship", "counterfactual", "truth"):
        assert (killed / f"data/{name}.json").read_text() == (whole / f"data/{name}.json").read_text()


def test_what_it_writes(tmp_path):
    done = subprocess.run([*COMMAND, str(tmp_path)], check=True, capture_output=True, text=True, env=ENVIRONMENT)
    tasks = ["kinship", "counterfactual", "truth"]
    table = load_result(tmp_path / "data/transfer.json", TransferTable)
    assert set(table.evaluations) == {(s, t) for s in ["base", *tasks, "random"] for t in tasks}
    for task in tasks:
        adapter = json.loads((tmp_path / "adapters" / task / "lofit_config.json").read_text())
        scores = load_result(tmp_path / f"data/{task}.json", HeadScores)
        assert adapter["heads"] == [list(head) for head in scores.top(0.1)]
        assert f"{task}: 1 heads selected" in done.stdout
    for figure in ("heads.html", "transfer.html"):
        page = (tmp_path / figure).read_text()
        assert "plotly" in page
        assert "<script src=" not in page, "the page must not need a network"
    assert "Test scores" in done.stdout


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = subprocess.Popen([*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while len(finished_runs(tmp_path)) < 1:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "start the same command again" in said
