"""`lofit-lens study`: what each command says, on a tiny model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from typer.testing import CliRunner

from lofit_lens import cli, cli_study
from lofit_lens.cli_study import duration
from lofit_lens.store import RunStore

TEXT = """
models = ["tiny-llama"]
heads = ["own", "random"]
k = [2]
[tasks.kinship]
n_train = 8
n_val = 2
n_test = 6
[methods.lofit]
scale_epochs = 1
offset_epochs = 1
"""


def study(*words, code=0):
    found = CliRunner().invoke(cli.app, ["study", *map(str, words)])
    assert found.exit_code == code, (found.output, found.exception)
    return found.output


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    file, store = folder / "mine.toml", folder / "store"
    file.write_text(TEXT)
    return file, store, study("run", file, "--store", store)


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(done, tmp_path):
    file, _, _ = done
    said = study("run", file, "--store", tmp_path / "store", "--dry-run")
    assert re.search(r"tiny-llama +kinship +cell +3 +0 +0", said)
    assert re.search(r"tiny-llama +kinship +head scores +2 +0 +0", said)
    assert "to do: tiny-llama.kinship.lofit.own.k2.seed0\n" in said
    assert "to do: tiny-llama.kinship.lofit.own.seed0.scores, used by 1\n" in said
    assert re.search(r"what is left: about \d+ s one after the other, \d+ MB in", said)
    assert not (tmp_path / "store").exists()


def test_a_run_says_what_is_done_and_where_the_time_went(done):
    _, store, said = done
    assert "mine: cells: 3 done; head scores: 2 done" in said
    assert re.search(r"together +5 +\d+ +\d\.\d\d", said)
    assert len(RunStore(store).folders()) == 3


def test_status_says_the_same(done):
    file, store, said = done
    assert study("status", file, "--store", store) == said


def test_the_store_is_below_runs_by_the_studys_name(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(done[1], tmp_path / "runs" / "mine")
    assert "cells: 3 done" in study("status", done[0])


def test_tables_are_printed_and_written(done, tmp_path):
    file, store, _ = done
    assert "exact_match" in study("table", file, "--store", store)
    for name in ("t.csv", "t.parquet", "t.md"):
        assert "3 cells in" in study("table", file, "--store", store, "--out", tmp_path / name)
    frames = [pd.read_csv(tmp_path / "t.csv"), pd.read_parquet(tmp_path / "t.parquet")]
    assert frames[0]["value"].tolist() == frames[1]["value"].tolist()
    assert (tmp_path / "t.md").read_text().count("\n") == 2 + 3
    with pytest.raises(ValueError, match=r"wanted a name that ends with \.csv"):
        CliRunner().invoke(
            cli.app, ["study", "table", str(file), "--store", str(store), "--out", "t.txt"], catch_exceptions=False
        )


def test_what_failed_is_said_and_tried_again(done, tmp_path):
    file, whole, _ = done
    store = RunStore(shutil.copytree(whole, tmp_path / "store"))
    lost = next(folder for folder in store.folders() if ".random." in folder.name)
    key = lost.name[-16:]
    shutil.rmtree(lost)
    store.mark_failed(key, {"error": "MemoryError", "message": "no room [for it]"})
    said = study("run", file, "--store", store.root, code=1)
    assert "cells: 2 done, 1 failed" in said
    assert f"failed: {lost.name[:-17]}: MemoryError: no room [for it]" in said
    assert f"lofit-lens study retry {file} --store {store.root}" in said
    assert f"1 will be tried again by: lofit-lens study run {file} --store {store.root}" in study(
        "retry", file, "--store", store.root
    )
    assert "nothing has failed" in study("retry", file, "--store", store.root)
    assert "cells: 3 done" in study("run", file, "--store", store.root)


def test_what_can_go_is_listed_and_removed_when_asked_to(done, tmp_path):
    file, whole, _ = done
    store = RunStore(shutil.copytree(whole, tmp_path / "store"))
    work = store.unfinished_folder(store.folders()[0].name[-16:])
    work.mkdir(parents=True)
    (work / "attempt.json").write_text(json.dumps({"deaths": 0, "reached": [], "spent": 0.0}))
    assert f"{work}  (finished)" in study("gc", file, "--store", store.root)
    assert work.exists()
    assert "removed" in study("gc", file, "--store", store.root, "--delete")
    assert not work.exists()
    assert "0 could go" in study("gc", file, "--store", store.root)


def test_what_this_study_has_nothing_to_do_with_goes_when_asked_to(done, tmp_path):
    file, whole, _ = done
    store = RunStore(shutil.copytree(whole, tmp_path / "store"))
    less = tmp_path / "less.toml"
    less.write_text(file.read_text().replace('"own", "random"', '"own"'))
    assert ".random." not in study("gc", less, "--store", store.root)
    assert ".random." in study("gc", less, "--store", store.root, "--of-others", "--delete")
    assert [folder.name for folder in store.folders() if ".random." in folder.name] == []
    assert "cells: 2 done" in study("status", less, "--store", store.root)


def test_a_run_gets_what_it_is_asked_for(done, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(cli_study, "run_study", lambda study, store, **settings: asked.update(settings))
    study("run", done[0], "--store", done[1], "--device", "cpu", "--n-devices", 2, "--accept-license", "gemma")
    assert asked == {"device": "cpu", "n_devices": 2, "track": None, "accept_license": ["gemma"]}
    asked.clear()
    cluster = pytest.importorskip("lofit_lens.cluster")
    monkeypatch.setattr(cluster, "run_on_ray", lambda study, store, **settings: asked.update(settings))
    resources = {"address": "auto", "cpus": 3, "gpus": 0.5, "memory_gb": 7.5}
    words = [word for name, value in resources.items() for word in (f"--{name.replace('_', '-')}", value)]
    study("run", done[0], "--store", done[1], "--executor", "ray", *words)
    assert asked == {**resources, "track": None, "accept_license": ()}


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_a_scheduler_may_end_a_run_as_a_person_does(done, tmp_path, wish):
    command = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from lofit_lens.cli import main; main()"
    )
    words = ["study", "run", str(done[0]), "--store", str(tmp_path / "store")]
    process = subprocess.Popen([sys.executable, "-c", command, *words], stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("store/unfinished/*/attempt.json")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)  # the note is written, and the work has begun
    process.send_signal(wish)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "start the same command again" in said
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("store/unfinished/*/attempt.json")]
    assert [note["deaths"] for note in notes if note["deaths"] >= 0] == [], "which is no death"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--executor", "slurm"], "--executor 'slurm'; wanted one of local, ray"),
        (["--address", "auto"], "--address auto is for --executor ray; add that, or leave it out"),
        (["--cpus", "4"], "--cpus 4 is for --executor ray; add that"),
        (["--gpus", "1"], r"--gpus 1\.0 is for --executor ray; add that"),
        (["--executor", "ray", "--device", "cuda"], "--device cuda is not for --executor ray, which has --gpus; leave it out"),
        (["--track", "mlflow"], "got the tracking service 'mlflow', wanted one of wandb, trackio"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(done, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(
            cli.app, ["study", "run", str(done[0]), "--store", str(tmp_path / "s"), *words], catch_exceptions=False
        )
    assert not (tmp_path / "s").exists()


def test_a_service_or_ray_that_is_not_installed_is_one_message(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lofit_lens.cluster", raising=False)
    command = ["lofit-lens", "study", "run", str(done[0]), "--store", str(tmp_path / "s")]
    for words, message in {
        ("--track", "wandb"): "error: wandb is not installed: pip install wandb",
        ("--executor", "ray"): "Ray comes with an extra: pip install 'lofit-lens[cluster]'",
    }.items():
        monkeypatch.setattr(sys, "argv", [*command, *words])
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err


def test_durations_are_for_people():
    assert [duration(seconds) for seconds in (40, 600, 9000)] == ["40 s", "10 min", "2.5 h"]
    assert duration(float("nan")).startswith("an unknown time")
