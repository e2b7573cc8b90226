"""Runs that are also sent to a tracking service: the real ones, without a network."""

import json
import sys

import pytest

import lofit_lens as ll
from lofit_lens.store import RunStore
from lofit_lens.study import Study, run_study
from lofit_lens.tasks import Kinship
from lofit_lens.tracking import checked_service

STUDY = Study(
    name="tracked",
    models=["tiny-llama"],
    tasks={"kinship": Kinship(n_train=8, n_val=2, n_test=6)},
    methods={"lofit": ll.methods.LoFiT(scale_epochs=1, offset_epochs=2)},
    heads=["random"],
    k=[2],
)


def test_a_run_is_sent_to_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run_study(STUDY, RunStore(tmp_path / "store"), track="trackio")
    api = trackio.Api()
    runs = list(api.runs("tracked"))
    assert len(runs) == 2


def test_a_run_is_sent_to_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    run_study(STUDY, RunStore(tmp_path / "store"), track="wandb")
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2


def test_a_service_that_fails_loses_nothing(tmp_path, monkeypatch, caplog):
    class Broken:
        @staticmethod
        def init(**_):
            raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", Broken)
    table = run_study(STUDY, RunStore(tmp_path), track="wandb")
    assert len(table) == 2
    assert caplog.text.count("was not sent to wandb: no network") == 2


def test_what_is_sent_is_what_is_kept(tmp_path, monkeypatch):
    sent = []

    class Service:
        @staticmethod
        def init(**settings):
            sent.append(settings)

        log, finish = staticmethod(sent.append), staticmethod(lambda: None)

    monkeypatch.setitem(sys.modules, "trackio", Service)
    store = RunStore(tmp_path)
    run_study(STUDY, store, track="trackio")
    (folder,) = (folder for folder in store.folders() if ".lofit." in folder.name)
    start = next(i for i, entry in enumerate(sent) if entry.get("name") == folder.name)
    assert sent[start]["project"] == "tracked"
    assert sent[start]["config"]["heads"] == "random"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sent[start + 1 : start + 1 + len(lines)] == [{"loss/offset": line["loss"]} for line in lines]
    assert sent[start + 1 + len(lines)].keys() == {"exact_match", "low", "high", "n"}


def test_nothing_is_sent_unless_asked(tmp_path, monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(run_study(STUDY, RunStore(tmp_path))) == 2


def test_services_are_checked_before_anything_is_run(monkeypatch):
    assert checked_service(None) is None
    with pytest.raises(ValueError, match="got the tracking service 'mlflow', wanted one of wandb, trackio"):
        checked_service("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="wandb is not installed: pip install wandb"):
        checked_service("wandb")
