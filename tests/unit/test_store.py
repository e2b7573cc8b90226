"""Finished runs on disk: what is read back is what was stored, and the same settings find it."""

import importlib.metadata
import json
import math
import shutil

import pytest
import torch

from lofit_lens import HeadIntervention, attached, tiny_model
from lofit_lens.heads import Head, HeadScores
from lofit_lens.methods.base import Fit
from lofit_lens.outcomes import Evaluation
from lofit_lens.runs import ADAPTER_FOLDER, ENVIRONMENT_FILE, METRICS_FILE, OUTCOMES_FILE, RUN_FILE, Run, environment_of, key_of
from lofit_lens.store import RunStore

NAN = math.nan
SETTINGS = {"model": "tiny-llama", "method": {"name": "LoFiT", "k": 0.1, "heads": [[2, 3]]}, "task": "toy", "seed": 0}
EVALUATION = Evaluation("toy", "test", "mc1", {"mc1": (1.0, 0.0), "mc2": (0.1, 1 / 3)}, texts=("a\n", "ü"), generated=2)
INTERVENTION = HeadIntervention(
    (Head(2, 3), Head(0, 1)),
    offset=torch.randn(2, 16, generator=torch.Generator().manual_seed(0)),
    made_by={"method": "LoFiT", "seed": 0},
    head_scores=(0.5, 0.1),
)
SCORES = HeadScores(torch.tensor([[0.1, 0.2], [NAN, NAN]]), "norm", {"task": "toy"})
FIT = Fit(INTERVENTION, SCORES, {"scale": (2.5, 1 / 3), "offset": (1.5,)})


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "deep" / "runs")


def stored_run(store, model, settings=SETTINGS):
    run = store.get(settings, model)
    assert run is not None
    return run


def test_a_run_is_read_back_as_it_was_stored(store, llama):
    store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    run = stored_run(store, llama)
    assert run.settings == SETTINGS
    assert run.evaluation == EVALUATION
    assert run.fit.losses == FIT.losses
    assert run.fit.intervention.heads == INTERVENTION.heads
    assert torch.equal(run.fit.intervention.offset, INTERVENTION.offset)
    assert run.fit.intervention.made_by == INTERVENTION.made_by
    torch.testing.assert_close(run.fit.scores.values, SCORES.values, rtol=0, atol=0, equal_nan=True)
    assert (run.fit.scores.quantity, run.fit.scores.made_by) == ("norm", {"task": "toy"})


def test_the_stored_edit_gives_the_same_logits_bit_for_bit(store, llama):
    store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    logits = []
    for intervention in (None, INTERVENTION, stored_run(store, llama).fit.intervention):
        with attached(llama, intervention), torch.no_grad():
            logits.append(llama(torch.arange(3, 11).reshape(1, -1)))
    assert torch.equal(logits[1], logits[2])
    assert not torch.equal(logits[1], logits[0])


def test_a_fit_without_scores_and_a_run_of_the_base_model_are_stored_too(store, llama):
    store.put(Run(SETTINGS, Fit(INTERVENTION, losses={"offset": (1.0,)}), EVALUATION), llama)
    assert stored_run(store, llama).fit.scores is None
    base = {**SETTINGS, "method": None}
    store.put(Run(base, None, EVALUATION), llama)
    assert stored_run(store, llama, base).fit is None
    assert stored_run(store, llama, base).evaluation == EVALUATION


def test_what_was_not_stored_is_none(store, llama):
    assert store.get(SETTINGS, llama) is None
    store.put(Run(SETTINGS, None, EVALUATION), llama)
    assert store.get({**SETTINGS, "seed": 1}, llama) is None


def test_a_run_that_is_there_already_stands(store, llama):
    store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    second = Evaluation("toy", "test", "exact_match", {"exact_match": (1.0,)})
    store.put(Run(SETTINGS, None, second), llama)
    assert stored_run(store, llama).evaluation == EVALUATION
    assert [folder.name for folder in (store.root / "runs").iterdir()] == [key_of(SETTINGS)]


# What others can read


LABELS = {"model": "tiny-llama", "task": "toy", "method": "lofit", "heads": "own", "k": 0.1, "n_train": None, "seed": 3}


def test_the_table_has_a_row_for_each_run(store, llama):
    store.put(Run(SETTINGS, FIT, EVALUATION, LABELS, {"fit": 1.5, "evaluate": 0.5}), llama)
    store.put(
        Run({**SETTINGS, "method": None}, None, EVALUATION, {"model": "tiny-llama", "task": "toy", "method": "base"}), llama
    )
    table = store.table().set_index("method")
    assert list(table.index) == ["base", "lofit"]
    lofit = table.loc["lofit"]
    assert (lofit["k"], lofit["seed"], lofit["metric"], lofit["value"], lofit["n"]) == (0.1, 3, "mc1", 0.5, 2)
    assert (lofit["low"], lofit["high"]) == EVALUATION.interval()
    assert (lofit["n_parameters"], lofit["fit_seconds"], lofit["folder"]) == (
        32,
        1.5,
        f"tiny-llama.toy.lofit.own.k0.1.seed3-{key_of(SETTINGS)}",
    )
    assert table.loc["base", "n_parameters"] == 0
    assert table[["seed", "k"]].isna().loc["base"].all()
    assert RunStore(store.root / "nothing").table().empty


def test_duckdb_reads_the_outcomes_of_all_runs_as_one_table(store, llama):
    duckdb = pytest.importorskip("duckdb")
    store.put(Run(SETTINGS, FIT, EVALUATION, LABELS), llama)
    store.put(Run({**SETTINGS, "seed": 1}, FIT, EVALUATION, {**LABELS, "task": "other", "heads": "iti"}), llama)
    query = (
        "SELECT task, heads, avg(score), count(*) FROM '{}/runs/*/outcomes.parquet' WHERE metric = '{}' GROUP BY ALL ORDER BY 1"
    )
    assert duckdb.sql(query.format(store.root, "mc1")).fetchall() == [("other", "iti", 0.5, 2), ("toy", "own", 0.5, 2)]
    frame = store.outcomes()
    assert len(frame) == 8
    texts = frame.query("task == 'toy' and metric == 'mc2'").sort_values("example")["text"]
    assert texts.tolist() == ["a\n", "ü"]


def test_a_run_says_where_it_was_made_and_how_its_loss_fell(store, llama):
    folder = store.put(Run(SETTINGS, FIT, EVALUATION, environment=environment_of(llama)), llama)
    environment = json.loads((folder / ENVIRONMENT_FILE).read_text())
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert (environment["dtype"], environment["device"], environment["threads"]) == ("float32", "cpu", 1)
    assert stored_run(store, llama).environment == environment
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert lines == [
        {"stage": "scale", "step": 0, "loss": 2.5},
        {"stage": "scale", "step": 1, "loss": 1 / 3},
        {"stage": "offset", "step": 0, "loss": 1.5},
    ]


def test_a_name_has_no_letters_that_a_file_cannot_have(store, llama):
    folder = store.put(Run(SETTINGS, None, EVALUATION, {"model": "org/model", "task": "a b<c>", "method": "base"}), llama)
    assert folder.name == f"org_model.a_b_c_.base-{key_of(SETTINGS)}"


def test_head_scores_are_read_back(store):
    assert store.get_scores(SETTINGS) is None
    store.put_scores(SETTINGS, SCORES, LABELS)
    found = store.get_scores(SETTINGS)
    torch.testing.assert_close(found.values, SCORES.values, rtol=0, atol=0, equal_nan=True)
    assert found.made_by == SCORES.made_by


def test_failures_are_kept_until_they_are_forgotten(store):
    assert store.failure("k") is None
    store.mark_failed("k", {"error": "ValueError"})
    assert store.failure("k") == {"error": "ValueError"}
    store.forget_failure("k")
    store.forget_failure("k")
    assert store.failure("k") is None


def test_fingerprints_and_the_journal_grow(store):
    assert (store.fingerprints("float32"), store.journal()) == ({}, [])
    for name in ("a", "b"):
        store.note_fingerprint(name, "float32", name * 3)
        store.note({"item": name})
    store.note_fingerprint("a", "bfloat16", "c")
    assert store.fingerprints("float32") == {"a": "aaa", "b": "bbb"}
    assert store.fingerprints("bfloat16") == {"a": "c"}
    assert store.journal() == [{"item": "a"}, {"item": "b"}]


# The key


def test_the_key_does_not_depend_on_the_order_of_settings():
    def backwards(value):
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert list(backwards(SETTINGS)) == list(SETTINGS)[::-1]
    assert key_of(backwards(SETTINGS)) == key_of(SETTINGS)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"seed": "0"},
        {"seed": None},
        {"method": {"name": "LoFiT", "k": 0.1, "heads": [[3, 2]]}},
        {"method": {"name": "LoFiT", "k": 0.2, "heads": [[2, 3]]}},
        {"extra": 0},
    ],
)
def test_the_key_depends_on_every_setting(changes):
    assert key_of({**SETTINGS, **changes}) != key_of(SETTINGS)


def test_settings_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"k": NAN})
    with pytest.raises(TypeError, match="not JSON serializable"):
        key_of({"head": torch.zeros(1)})


# Damage


def without(key):
    def remove(text: str) -> str:
        stored = json.loads(text)
        del stored[key]
        return json.dumps(stored)

    return remove


def within(key, value):
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        without("settings"),
        without("evaluation"),
        without("stages"),
        without("labels"),
        within("schema", 99),
        within("evaluation", {}),
        within("evaluation", None),
        within("stages", ["another"]),
    ],
)
def test_a_damaged_run_file_is_refused_with_the_folder_to_delete(as_users_run_it, store, llama, damage):
    folder = store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    path = folder / RUN_FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=f"{folder} is damaged, or of another base model .*; delete that folder"):
        store.get(SETTINGS, llama)
    shutil.rmtree(folder)
    assert store.get(SETTINGS, llama) is None


@pytest.mark.parametrize("name", [METRICS_FILE, OUTCOMES_FILE, f"{ADAPTER_FOLDER}/head_scores.json"])
def test_other_damaged_files_are_refused_too(store, llama, name):
    folder = store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{folder} is damaged, or"):
        store.get(SETTINGS, llama)


@pytest.mark.parametrize("name", ["lofit_config.json", "lofit_vectors.safetensors"])
def test_a_damaged_or_missing_adapter_is_refused_with_the_folder_to_delete(store, llama, name):
    folder = store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    path = folder / ADAPTER_FOLDER / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{folder} is damaged, or"):
        store.get(SETTINGS, llama)
    path.unlink()
    with pytest.raises(ValueError, match=f"{folder} is damaged, or .*has no {name}"):
        store.get(SETTINGS, llama)


def test_a_run_of_another_base_model_is_refused(store, llama):
    store.put(Run(SETTINGS, FIT, EVALUATION), llama)
    with pytest.raises(ValueError, match="made for 'tiny-llama'"):
        store.get(SETTINGS, tiny_model("llama", seed=1))


def test_a_journal_with_a_line_that_was_cut_short_is_read(store):
    store.note({"item": "a"})
    with open(store.root / "journal.jsonl", "a") as journal:
        journal.write('{"item": "b", "seco')
    for name in ("c", "d"):
        store.note({"item": name})
    assert [entry["item"] for entry in store.journal()] == ["a", "c", "d"]


def test_names_are_as_long_as_file_systems_take(store, llama):
    labels = {"model": "/" + "m" * 200, "task": "ü" * 200, "seed": 0}
    folder = store.put(Run(SETTINGS, FIT, EVALUATION, labels), llama)
    store.put_scores(SETTINGS, SCORES, labels)
    assert folder == store.find(SETTINGS)
    assert store.find_scores(SETTINGS)


def test_a_store_stays_where_it_was_when_somebody_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore("runs")
    monkeypatch.chdir("/")
    assert store.root == tmp_path / "runs"


def test_a_store_is_a_folder(tmp_path):
    assert RunStore(f"file://{tmp_path}").root == RunStore(tmp_path).root == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file; wanted a folder for runs"):
        RunStore(tmp_path / "file")
    with pytest.raises(ValueError, match=r"got 's3://bucket/runs', wanted a folder"):
        RunStore("s3://bucket/runs")
