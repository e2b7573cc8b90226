"""The commands, in process, on a tiny random model."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import lofit_lens as ll
from lofit_lens import cli
from lofit_lens.methods import METHODS


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line as the installed script does; gives (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lofit-lens", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        out, err = capsys.readouterr()
        return (code if isinstance(code, int) else 0 if code is None else 1), out, err

    return call


FIT = ("fit", "kinship", "--model", "tiny-llama", "--scale-epochs", "1", "--offset-epochs", "1", "--n-train", "8")


def test_fit_then_eval_then_fit_on_the_same_heads(run, tmp_path):
    adapter = tmp_path / "adapter"
    code, out, err = run(*FIT, "--k", "3", "--out", str(adapter))
    assert code == 0, err
    assert out.startswith("3 heads: L")
    assert {file.name for file in adapter.iterdir()} >= {"lofit_config.json", "lofit_vectors.safetensors", "head_scores.json"}

    assert out.endswith(f"try: lofit-lens eval kinship --adapter {adapter} --model tiny-llama\n")

    outcome = tmp_path / "outcome.json"
    code, out, err = run("eval", "truth", "--model", "tiny-llama", "--adapter", str(adapter), "--out", str(outcome))
    assert code == 0, err
    assert out.startswith("truth mc1 ")
    assert json.loads(outcome.read_text())["n"] == 300

    code, out, err = run(*FIT, "--heads-of", str(adapter), "--out", str(tmp_path / "borrowed"))
    assert code == 0, err
    heads = [json.loads((tmp_path / name / "lofit_config.json").read_text())["heads"] for name in ("adapter", "borrowed")]
    assert heads[0] == heads[1]
    assert not (tmp_path / "borrowed" / "head_scores.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "loreft", "--layers", "1"), "error: layers = 1: Input should be a list"),
        (("--method", "lora", "--rank", "4.5"), "error: rank = 4.5: Input should be a valid integer"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(run, tmp_path, words, message):
    code, _, err = run("fit", "kinship", "--model", "tiny-llama", "--out", str(tmp_path / "a"), *words)
    assert code == 1
    assert message in err
    assert "pydantic" not in err


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("lofit", "offset-epochs", 2),
        ("iti", "k", 2),
        ("repe", "vector", "contrast"),
        ("red", "epochs", 1),
        ("lora", "rank", 2),
        ("loreft", "suffix", 1),
        ("bitfit", "learning-rate", 0.01),
        ("jola", "as-published", True),
        ("few-shot", "n-examples", 2),
    ],
)
def test_every_method_fits_saves_and_is_evaluated(run, tmp_path, method, setting, value):
    out = tmp_path / method
    words = ("--method", method, f"--{setting}", json.dumps(value).strip('"'))
    code, _, err = run("fit", "truth", "--model", "tiny-llama", "--n-train", "8", *words, "--out", str(out))
    assert code == 0, err
    made_by = json.loads((out / "lofit_config.json").read_text())["made_by"]
    assert made_by["settings"][setting.replace("-", "_")] == value
    code, out_text, err = run("eval", "truth", "--model", "tiny-llama", "--split", "val", "--adapter", str(out))
    assert code == 0, err
    assert out_text.startswith("truth mc1 ")


def test_heads_for_a_method_that_chooses_none_are_refused(run, tmp_path):
    code, _, err = run("fit", "truth", "--method", "lora", "--k", "3", "--out", str(tmp_path / "lora"))
    assert code == 1
    assert "lora does not choose heads" in err


def test_eval_by_another_metric_and_with_side_effects(run, tmp_path, monkeypatch):
    model = ll.tiny_model("llama")
    edit = ll.HeadIntervention((ll.Head(1, 2),), offset=torch.ones(1, 16), made_by={})
    adapter, outcome = edit.save(tmp_path / "adapter", model), tmp_path / "outcome.json"
    common = ("eval", "ioi", "--model", "tiny-llama", "--adapter", str(adapter), "--out", str(outcome))

    code, out, err = run(*common, "--metric", "exact_match", "--side-effects", "--text", "kinship")
    assert code == 0, err
    assert out.startswith("ioi exact_match ")
    stories = [example.prompt + example.answer for example in ll.tasks.Kinship().test[:100]]
    wanted = ll.side_effects(model, edit, stories)
    assert " ".join(out.split()).endswith(str(wanted))
    found = json.loads(outcome.read_text())["side_effects"]
    assert found == {name: list(values) for name, values in vars(wanted).items()}

    (tmp_path / "news.csv").write_text("text\nIt rained all day.\nNobody came.\n", encoding="utf-8")
    code, out, err = run(*common, "--side-effects", "--text", str(tmp_path / "news.csv"))
    assert code == 0, err
    assert "(n = 2 texts)" in " ".join(out.split())

    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path))
    monkeypatch.setattr(cli.sources, "cache_dir", lambda: tmp_path)
    nowhere = cli.sources.DataFile("open_web_text/train.parquet", "http://127.0.0.1:9/train.parquet", "0" * 64, "")
    monkeypatch.setitem(cli.sources.SOURCES, "open_web_text", (nowhere,))
    code, _, err = run(*common, "--side-effects")
    assert code == 1
    assert "could not be fetched" in err
    assert "or measure on other text" in err


def test_a_fit_has_a_folder_without_being_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("fit", "kinship", "--model", "tiny-llama", "--n-train", "8", "--method", "iti", "--k=3", "--alpha=-2.5")
    assert code == 0, err
    made_by = json.loads((tmp_path / "adapters" / "kinship-iti" / "lofit_config.json").read_text())["made_by"]
    assert made_by["settings"]["alpha"] == -2.5


def test_a_method_and_its_settings_can_be_named(run, tmp_path):
    options = ("--method", "iti", "--k", "0.1", "--alpha", "2.5", "--direction", "probe", "--max-iter", "50")
    code, _, err = run("fit", "kinship", "--model", "tiny-llama", "--n-train", "8", *options, "--out", str(tmp_path / "iti"))
    assert code == 0, err
    made_by = json.loads((tmp_path / "iti" / "lofit_config.json").read_text())["made_by"]
    assert made_by["method"] == "ITI"
    assert {name: made_by["settings"][name] for name in ("alpha", "direction", "k")} == {
        "alpha": 2.5,
        "direction": "probe",
        "k": 0.1,
    }


def test_the_list_of_methods_has_their_defaults_and_sources(run, monkeypatch):
    monkeypatch.setattr(cli.console, "width", 1000)
    code, listed, err = run("methods")
    assert code == 0, err
    for name, method in METHODS.items():
        (row,) = (line.strip() for line in listed.splitlines() if line.split()[:1] == [name])
        assert all(f"{setting}={value!r}" in row for setting, value in method().settings().items())
        assert row.endswith((sys.modules[method.__module__].__doc__ or "").splitlines()[0])
    assert all(said in listed for said in ("alpha=15.0", "rank=8", "2306.03341"))


def test_lists_name_every_model_and_task():
    runner = CliRunner()
    models = runner.invoke(cli.app, ["models"]).output
    assert "smollm2-135m-instruct" in models
    assert "gemma-3-270m" in models


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_tasks_is_whole_at_any_width_and_without_data(run, tmp_path, monkeypatch, width):
    monkeypatch.setattr(cli.console, "width", width)
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path))
    monkeypatch.setattr(cli.sources, "cache_dir", lambda: tmp_path)
    code, out, err = run("tasks")
    assert code == 0, err
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    said = " ".join(out.split())
    assert "truthfulqa 326/82/409 dpo mc1 0.22" in said
    assert "boolq 100/100/3270 cross_entropy exact_match 0.50" in said
    assert "trivia_qa 0/0/? cross_entropy mc1 0.50" in said
    assert all(" ".join((family.__doc__ or "").strip().splitlines()[0].split()[:3]) in said for family in cli.TASKS.values())


def test_a_bad_or_short_or_empty_file_does_not_hide_the_other_tasks(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path))
    monkeypatch.setattr(cli.sources, "cache_dir", lambda: tmp_path)
    story = '{"clean_story": "", "query": "", "target_text": ""}'
    header = "Question,Best Answer,Correct Answers,Incorrect Answers,Category\n"
    contents = {
        "clutrr/train.json": f"[{story}]",
        "mquake/test.jsonl": '{"no": 1}',
        "truthfulqa/fold_0_test_seed_42.csv": header,
        "truthfulqa/mc_prompt.txt": "Be honest.",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, out, err = run("tasks")
    assert code == 0, err
    said = " ".join(out.split())
    assert "truthfulqa 326/82/0 dpo mc1 ?" in said
    assert "clutrr bad/450/450" in said
    assert f"bad: n_train=300 is more than the 1 records in {tmp_path}/clutrr/train.json" in said
    assert f"bad: {tmp_path}/mquake/test.jsonl, line 1 (record 1): got the fields ['no']" in said
    assert "boolq 100/100/3270" in said
    assert said.count("bad: ") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "kinshp", "--out", "x"), "kinship"),
        (("fit", "kinship", "--model", "tiny-llamma", "--out", "x"), "'llamma'"),
        (("fit", "kinship", "--model", "tiny-llama", "--k", "0", "--out", "x"), "--k '0'; wanted a count"),
        (("fit", "kinship", "--model", "tiny-llama", "--k", "1.5", "--out", "x"), "--k '1.5'; wanted a count"),
        (("fit", "kinship", "--model", "tiny-llama", "--method", "iti", "--alpha"), "'--alpha' without a value; wanted"),
        (("fit", "kinship", "--model", "tiny-llama", "--k", "13", "--out", "x"), "12"),
        (("fit", "kinship", "--model", "tiny-llama", "--k", "many", "--out", "x"), "--k 'many'"),
        (("fit", "kinship", "--model", "tiny-llama", "--n-train", "0", "--out", "x"), "n_train"),
        (("fit", "--method", "iti", "--alpha", "3", "kinship"), "got '--alpha' before the task; wanted: lofit-lens fit TASK"),
        (("fit", "kinship", "--model", "tiny-llama", "--method", "itti", "--out", "x"), "wanted one of lofit, iti, repe, red"),
        (("fit", "kinship", "--model", "tiny-llama", "--method", "red", "--k", "3", "--out", "x"), "neither --k nor"),
        (("fit", "kinship", "--model", "tiny-llama", "--alhpa", "3", "--out", "x"), "--scale-lr VALUE"),
        (("fit", "kinship", "--model", "tiny-llama", "--scale-lr", "-3", "--out", "x"), "scale_lr"),
        (("eval", "kinship", "--model", "tiny-llama", "--split", "dev"), "train, val or test"),
        (("eval", "kinship", "--model", "tiny-llama", "--metric", "f1"), "exact_match, mc1"),
        (("eval", "kinship", "--model", "tiny-llama", "--metric", "mc1"), "has no wrong answers"),
        (("eval", "kinship", "--model", "tiny-llama", "--side-effects"), "name one with --adapter"),
        (("eval", "kinship", "--model", "tiny-llama", "--text", "truth"), "is for --side-effects"),
        (("eval", "kinship", "--model", "tiny-llama", "--adapter", "nowhere"), "lofit_config.json"),
        (("fit", "kinship", "--model", "gemma-3-270m", "--out", "x"), "--accept-license gemma"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 1
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_has_diverged_is_one_message(run, tmp_path):
    model = ll.tiny_model("llama")
    ll.HeadIntervention((ll.Head(0, 1),), offset=torch.full((1, 16), torch.nan)).save(tmp_path / "adapter", model)
    code, _, err = run("eval", "kinship", "--model", "tiny-llama", "--adapter", str(tmp_path / "adapter"))
    assert code == 1
    assert "error: no likeliest token at" in err
    assert "Traceback" not in err


def test_an_unknown_option_is_refused(run):
    code, _, err = run("fit", "kinship", "--outt", "x")
    assert code == 1
    assert "got '--outt'; wanted one of --batch-size VALUE" in err


def test_fit_refuses_an_output_that_exists_or_cannot_be_written(run, tmp_path):
    (tmp_path / "there").mkdir()
    code, _, err = run(*FIT, "--out", str(tmp_path / "there"))
    assert code == 1
    assert "exists already" in err
    (tmp_path / "file").write_text("not a folder")
    code, _, err = run(*FIT, "--out", str(tmp_path / "file" / "adapter"))
    assert code == 1
    assert "cannot be written" in err


def test_an_adapter_whose_place_became_unwritable_is_kept_elsewhere(run, tmp_path, monkeypatch):
    """A full disk at the end of a fit: the check at the start passed, the write fails."""
    save = cli.ll.HeadIntervention.save

    def full_disk(self, folder, model, *, overwrite=False):
        if folder == tmp_path / "adapter":
            raise OSError(28, "No space left on device")
        return save(self, folder, model, overwrite=overwrite)

    monkeypatch.setattr(cli.ll.HeadIntervention, "save", full_disk)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code, _, err = run(*FIT, "--out", str(tmp_path / "adapter"))
    assert code == 1
    assert "No space left" in err
    rescued = next(tmp_path.glob("lofit-lens-rescued-*/adapter"))
    assert len(cli.ll.HeadIntervention.load(rescued).heads) == 1
