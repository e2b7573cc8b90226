"""Studies: what a file says, which cells it makes, what they share, and that they come out as the functions would give them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import lofit_lens as ll
from lofit_lens import activations, bfloat16, files
from lofit_lens import study as studies
from lofit_lens.causal import leave_one_out_scores
from lofit_lens.fitting import NonFiniteLossError
from lofit_lens.methods import ITI, RED, LoFiT
from lofit_lens.store import RunStore
from lofit_lens.study import Catalogue, Cell, Study, Worker, plan, retry_study, run_study, study_status, study_table, time_table
from lofit_lens.study.items import Selection, pool_of, pool_size
from lofit_lens.study.plan import _operations_per_second
from lofit_lens.study.settings import Settings
from lofit_lens.tasks import Counterfactual, Kinship, Truth

TEXT = """
models = ["tiny-llama"]
heads = ["own", "others", "iti", "random"]
k = [2, 0.5]
seeds = [0, 1]

[tasks.kinship]
n_train = 8
n_val = 4
n_test = 6

[tasks.told]
task = "truth"
n_train = 8
n_val = 4
n_test = 6

[methods.lofit]
scale_epochs = 1
offset_epochs = 1
choose = { offset_lr = [3e-2, 1e-1] }

[[methods.lofit.where]]
task = "told"
k = 2
set = { scale_lr = 2e-2 }

[methods.red]
epochs = 1
"""
SIZES = {"n_train": 8, "n_val": 4, "n_test": 6}
items = Catalogue.items
QUICK = LoFiT(scale_epochs=1, offset_epochs=1)


def study_of(text: str, folder: Path) -> Study:
    path = folder / "heads.toml"
    path.write_text(text)
    return Study.from_file(path)


def small(**settings) -> Study:
    """Two tasks on their own and each other's heads."""
    tasks = {"kinship": Kinship(**SIZES), "counter": Counterfactual(**SIZES)}
    given = {"models": ["tiny-llama"], "tasks": tasks, "methods": {"lofit": QUICK}, "heads": ["own", "others"], "k": [2]}
    return Study(name="small", **{**given, **settings})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The study of `TEXT`, run."""
    folder = tmp_path_factory.mktemp("study")
    study, store = study_of(TEXT, folder), RunStore(folder / "store")
    run_study(study, store)
    return study, store


# What a file says


def test_a_file_and_python_make_the_same_study(tmp_path):
    said = study_of(TEXT, tmp_path)
    lofit = Settings(QUICK, {"offset_lr": (3e-2, 1e-1)}, [{"task": "told", "k": 2, "set": {"scale_lr": 2e-2}}])
    made = Study(
        name="heads",
        models=["tiny-llama"],
        heads=["own", "others", "iti", "random"],
        k=[2, 0.5],
        seeds=[0, 1],
        tasks={"kinship": Kinship(**SIZES), "told": Truth(**SIZES)},
        methods={"lofit": lofit, "red": RED(epochs=1)},
    )
    assert said == made
    assert list(said.cells()) == list(made.cells())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("models", "modles", r"modles = \['tiny-llama'\]: unknown key; wanted some of name, models, tasks"),
        ('models = ["tiny-llama"]', "", r"\.toml: models: wanted, and not there$"),
        ("seeds = [0, 1]", "seeds = [-1]", r"\.toml: seeds\.0 = -1: Input should be greater than or equal to 0$"),
        (
            "k = [2, 0.5]",
            "k = [2, 0.5]\nskip = [{head = 'own'}]",
            "skip.0.head = 'own': unknown key; wanted some of model, task,",
        ),
        ('heads = ["own", "others", "iti", "random"]', "heads = []", "methods.lofit makes no cell, as heads = .* with 2 task"),
        ("offset_lr = [3e-2, 1e-1]", "offset_lr = [3e-2, 3e-2]", "wanted one setting with the values to try, each once"),
        ('["tiny-llama"]', '"tiny-llama"', "models = 'tiny-llama': Input should be a list"),
        ('"iti"', '"itti"', "heads has 'itti'; wanted some of own, .*, leave-one-out, or a task of the study"),
        ("seeds = [0, 1]", "seeds = []", r"seeds = \[\]: List should have at least 1 item"),
        ("seeds = [0, 1]", "seeds = [true]", "seeds.0 = True: Input should be a valid integer"),
        ("seeds = [0, 1]", 'seeds = ["1"]', "seeds.0 = '1': Input should be a valid integer"),
        ("models", 'name = "../a"\nmodels', r"name = '../a': String should match pattern"),
        ("[tasks.kinship]\n", "[tasks]\nkinship = 5\n[tasks.clutrr]\n", r"tasks.kinship = 5; wanted a table \[tasks.kinship\]"),
        ('task = "truth"', 'task = ["truth"]', r"tasks.told: task = \['truth'\]; wanted one of truthfulqa"),
        ("[methods.red]\nepochs = 1", "[methods]\nred = 5", r"methods.red = 5; wanted a table \[methods.red\]"),
        ("[methods.red]", "[methods.base]\nmethod = 'red'", "a method is called 'base'"),
        ("seeds = [0, 1]", "seeds = [0, 0]", r"seeds = \[0, 0\] has a value twice"),
        ("k = [2, 0.5]", "k = [2, 1.5]", "k.1 = 1.5: Input should be less than or equal to 1"),
        ("n_train", "n_trian", "tasks.kinship: kinship has no setting 'n_trian'; wanted some of n_train, n_val"),
        ("n_train = 8", "n_train = 'all'", "tasks.kinship.n_train = 'all': Input should be a valid integer"),
        ('task = "truth"', 'task = "truht"', "tasks.told: got the task name 'truht', .* did you mean 'truth'"),
        ("[tasks.told]", "[tasks.iti]", "a task is called 'iti', which is a source of heads"),
        ("[methods.red]", "[methods.blue]", "methods.blue: method = 'blue'; wanted one of lofit, iti"),
        ("epochs = 1\n", "epochs = 0\n", "methods.*epochs = 0: Input should be greater than or equal to 1"),
        ("scale_epochs", "scale_epoch", "methods.lofit: lofit has no setting 'scale_epoch'; wanted some of .*scale_epochs"),
        ("scale_epochs = 1", "k = 3", "methods.lofit: lofit has no setting 'k'"),
        ("offset_lr = [3e-2, 1e-1]", "rate = [1]", "methods.lofit: LoFiT has no setting 'rate'"),
        ("offset_lr = [3e-2, 1e-1]", "offset_lr = []", "methods.lofit.*wanted one setting with the values to try"),
        (
            "offset_lr = [3e-2, 1e-1]",
            "offset_lr = [[1, 2]]",
            r"methods.lofit.offset_lr = \[1, 2\]: Input should be a valid number",
        ),
        ("offset_lr = [3e-2, 1e-1]", "offset_lr = [-1.0]", "methods.lofit.offset_lr = -1.0: Input should be greater than 0"),
        ('task = "told"', 'tsk = "told"', "methods.lofit.where.0.tsk = 'told': unknown key; wanted some of model, task"),
        ('task = "told"', 'task = "truth"', "methods.lofit.where has task = 'truth'; wanted one of kinship, told"),
        ("[methods.red]", "[methods.red]\nheads = ['own']", r"methods.red: RED takes no heads; leave heads = \['own'\] out"),
        ("[methods.red]", "[methods.iti]\nheads = ['bias']\n[methods.red]", 'heads has "bias", which is a way of LoFiT'),
        ("[methods.red]", "[methods.red", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_key_value_and_choices(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        study_of(TEXT.replace(old, new), tmp_path)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.toml is not there; wanted a study, a TOML file"):
        Study.from_file(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.toml is not UTF-8, as TOML has to be"):
        Study.from_file(tmp_path / "latin.toml")
    (tmp_path / "marked.toml").write_text(TEXT, encoding="utf-8-sig")
    assert Study.from_file(tmp_path / "marked.toml").models == ("tiny-llama",)


def test_heads_are_the_studys_to_give():
    with pytest.raises(ValueError, match=r"LoFiT has heads=\(\(0, 0\),\); leave them out"):
        small(methods={"lofit": replace(QUICK, heads=((0, 0),))})


def test_data_sizes_are_refused_where_a_task_has_none(tmp_path):
    class Plain(ll.tasks.Task):
        name, loss, metric, chance = "plain", "cross_entropy", "exact_match", 0.0

        def build(self, split):
            return [ll.tasks.Example("a", "b")]

    with pytest.raises(ValueError, match="n_train is varied, but the task 'plain' has no n_train"):
        small(tasks={"plain": Plain()}, n_train=[4, 8])


# Which cells, and what they share


def test_the_cells_of_a_study(done):
    study, _ = done
    cells = list(study.cells())
    # Each task: the base model, and with two seeds RED and four sources of heads at two k.
    assert len(cells) == 2 * (1 + 2 * (1 + 4 * 2)) == len(set(cells))
    assert cells[0] == Cell("tiny-llama", "kinship")
    assert {cell.heads for cell in cells if cell.task == "kinship" and cell.method == "lofit"} == {
        "own",
        "told",
        "iti",
        "random",
    }
    assert {(cell.heads, cell.k) for cell in cells if cell.method == "red"} == {(None, None)}


def test_a_task_named_as_a_source_is_its_own_source():
    study = small(heads=["kinship"])
    assert [(cell.task, cell.heads) for cell in study.cells() if cell.method] == [("kinship", "own"), ("counter", "kinship")]


def test_data_sizes_make_cells_with_tasks_of_that_size():
    study = small(n_train=[4, 8])
    cells = [cell for cell in study.cells() if cell.method]
    assert len(cells) == 2 * 2 * 2
    assert study.task_at("kinship", 4) == Kinship(**{**SIZES, "n_train": 4})
    of_sizes = {cell.n_train: studies.items.selection_of(cell).n_train for cell in cells}
    assert of_sizes == {4: 4, 8: 8}


def test_exceptions_hold_where_they_say(done):
    study, _ = done
    assert study.method_at(Cell("tiny-llama", "told", "lofit", "own", 2)).scale_lr == 2e-2
    assert study.method_at(Cell("tiny-llama", "told", "lofit", "own", 0.5)).scale_lr == QUICK.scale_lr
    assert study.method_at(Cell("tiny-llama", "kinship", "lofit", "own", 2)).scale_lr == QUICK.scale_lr


def test_head_scores_are_made_once_for_all_cells_that_start_from_them(done):
    study, store = done
    items = Catalogue(study, store.fingerprints(study.dtype)).items("tiny-llama")
    scores = [item for item in items if isinstance(item, Selection)]
    # For each seed: kinship's own, told's own at k = 2 and at k = 0.5 (another scale_lr), ITI's and random ones of both tasks.
    assert len(scores) == 2 * (1 + 2 + 2 + 2)
    assert len(list(store.root.glob("scores/*.json"))) == len(scores)
    assert len([entry for entry in store.journal() if entry["item"].endswith(".scores")]) == len(scores)


def test_what_step_2_alone_reads_makes_no_other_head_scores():
    fingerprints = {"tiny-llama": "f"}
    keys = set()
    for method in (QUICK, replace(QUICK, offset_lr=0.5), replace(QUICK, offset_epochs=3), replace(QUICK, scale_lr=0.5)):
        study = small(methods={"lofit": method})
        keys.add(Catalogue(study, fingerprints).key(Selection("tiny-llama", "own", "kinship", "lofit", seed=0)))
    assert len(keys) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"k": [3]},
        {"split": "val"},
        {"metric": "mc1"},
        {"dtype": "bfloat16"},
        {"methods": {"lofit": replace(QUICK, offset_lr=0.5)}},
        {"tasks": {"kinship": Kinship(**{**SIZES, "n_test": 7}), "counter": Counterfactual(**SIZES)}},
    ],
)
def test_the_key_of_a_cell_knows_all_that_determines_it(change):
    def key(study, fingerprint="f"):
        cell = next(cell for cell in study.cells() if cell.heads == "own")
        return Catalogue(study, {"tiny-llama": fingerprint}).key(cell)

    assert key(small(**change)) != key(small())
    assert key(small(), "g") != key(small())
    assert key(small(models=["tiny-llama"], heads=["random", "own"], seeds=[0, 5])) == key(small())


def test_a_tasks_examples_are_in_the_key_whatever_its_settings_say(tmp_path):
    def key(**answers):
        answers = {"train": "a", "val": "a", "test": "a"} | answers
        data = {split: [{"question": "q", "answer": answer}] * 3 for split, answer in answers.items()}
        task = ll.tasks.Records(data, prompt="{question}", answer="{answer}")
        study = small(tasks={"mine": task}, heads=["own"], split="val")
        return Catalogue(study, {"tiny-llama": "f"}).key(Cell("tiny-llama", "mine"))

    # A few-shot prompt has no example of any other split, the one that is not judged too.
    assert len({key(), key(train="b"), key(val="b"), key(test="b")}) == 4
    assert key() == key()


def test_random_heads_are_drawn_anew_for_every_task_seed_and_kind():
    catalogue = Catalogue(small(), {})
    places = itertools.product(("random", "random-per-layer"), ("kinship", "counter"), (0, 1))
    assert len({catalogue.seed_of_draw(Selection("tiny-llama", source, task, seed=seed)) for source, task, seed in places}) == 8


def test_a_choice_among_first_steps_is_refused():
    with pytest.raises(ValueError, match="heads are chosen once, before what is tried, and scale_lr is read there"):
        Settings(QUICK, {"scale_lr": (1e-3, 1e-2)})


def test_a_method_that_cannot_say_what_it_is_is_refused():
    class Bare:
        def fit(self, model, task, *, seed=0): ...

    with pytest.raises(ValueError, match=r"Bare has no settings\(\)"):
        small(methods={"bare": Bare()})


def test_a_methods_own_k_makes_no_other_cell():
    cell = Cell("tiny-llama", "kinship", "lofit", "own", 2, seed=0)
    catalogues = [Catalogue(small(methods={"lofit": replace(QUICK, k=k)}), {"tiny-llama": "f"}) for k in (0.1, 3)]
    assert catalogues[0].key(cell) == catalogues[1].key(cell)
    assert catalogues[0].settings(cell)["methods"][0]["settings"]["k"] == 2, "what its adapter says is what it has"


@pytest.mark.parametrize("change", [{"loss": "dpo"}, {"metric": "mc1"}, {"stop": (".",)}])
def test_what_trains_on_a_task_and_judges_it_is_in_the_key(change):
    def key(**settings):
        data = {split: [{"q": "q", "a": "a", "w": "w"}] for split in ("train", "val", "test")}
        task = ll.tasks.Records(data, prompt="{q}", answer="{a}", rejected="{w}", **settings)
        return Catalogue(small(tasks={"mine": task}), {"tiny-llama": "f"}).key(Cell("tiny-llama", "mine"))

    assert key(**change) != key()


# What comes out


def test_a_cell_is_what_the_functions_give(done, llama):
    study, store = done
    task = study.tasks["kinship"]
    fits = [replace(QUICK, k=2, offset_lr=rate).fit(llama, task, seed=1) for rate in (3e-2, 1e-1)]
    values = [ll.evaluate(llama, task, fit.intervention, split="val").value for fit in fits]
    best = fits[values.index(max(values))]
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    run = store.get(catalogue.settings(Cell("tiny-llama", "kinship", "lofit", "own", 2, seed=1)), llama)
    assert run.fit.intervention.heads == best.intervention.heads
    assert torch.equal(run.fit.intervention.offset, best.intervention.offset)
    assert run.evaluation == ll.evaluate(llama, task, best.intervention)
    assert [trial["val"] for trial in run.trials] == values
    assert run.fit.losses["offset"] == best.losses["offset"]


def test_another_metric_judges_and_chooses(tmp_path, llama):
    rates = {"offset_lr": (3e-2, 1e-1)}
    study = small(
        tasks={"truth": Truth(**SIZES)}, methods={"lofit": Settings(QUICK, rates)}, heads=["random"], metric="exact_match"
    )
    store = RunStore(tmp_path)
    assert run_study(study, store)["metric"].tolist() == ["exact_match"] * 2
    (run,) = (run for cell, run in studies.runs(study, store).items() if cell.method)
    assert run.evaluation == ll.evaluate(llama, study.tasks["truth"], run.fit.intervention, metric="exact_match")


def test_every_source_gives_the_heads_that_its_function_gives(tmp_path, llama):
    sources = ["own", "others", *(source for source in studies.HEAD_SOURCES if source not in ("own", "others"))]
    study, store = small(heads=sources, methods={"lofit": QUICK}, seeds=[3]), RunStore(tmp_path)
    run_study(study, store)
    kinship, counter = study.tasks["kinship"], study.tasks["counter"]
    own = QUICK.select(llama, kinship, seed=3)
    select = ll.selection
    catalogue = Catalogue(study, store.fingerprints(study.dtype))

    def drawn(source):
        return catalogue.seed_of_draw(Selection("tiny-llama", source, "kinship", seed=3))

    expected = {
        "own": own,
        "own-per-layer": ll.selection.spread_over_layers(own),
        "counter": QUICK.select(llama, counter, seed=3),
        "iti": ITI().select(llama, kinship, seed=3),
        "random": select.random_scores(llama, seed=drawn("random")),
        "random-per-layer": select.spread_over_layers(select.random_scores(llama, seed=drawn("random-per-layer"))),
        "random-like-own": select.random_scores(llama, seed=drawn("random-like-own"), like=own.top(2)),
        "gradient-norm": select.gradient_scores(llama, kinship, measure="norm"),
        "gradient-signed": select.gradient_scores(llama, kinship, measure="signed"),
        "gradient-fisher": select.gradient_scores(llama, kinship, measure="fisher"),
        "greedy-gradient": select.greedy_gradient_scores(llama, kinship, k=2),
        "bias": replace(QUICK, select_by="offset").select(llama, kinship, seed=3),
        "layer-probes": select.layer_probe_scores(llama, kinship, seed=3),
        "leave-one-out": leave_one_out_scores(
            llama, kinship, replace(QUICK, k=6, heads=own.top(6)).fit(llama, kinship, seed=3).intervention
        ),
    }
    for source, scores in expected.items():
        run = store.get(catalogue.settings(Cell("tiny-llama", "kinship", "lofit", source, 2, seed=3)), llama)
        assert run.fit.intervention.heads == scores.top(2), source


def test_heads_are_left_out_of_a_fit_at_three_times_as_many(tmp_path):
    assert [pool_size(k) for k in (2, 0.03, 0.1, 0.5)] == [6, 0.09, 0.3, 1.0]
    study, store = small(tasks={"kinship": Kinship(**SIZES)}, heads=["leave-one-out"]), RunStore(tmp_path)
    _base, own, pool, scores, _cell = Catalogue(study, {"tiny-llama": "f"}).items("tiny-llama")
    assert (own.source, pool.heads, pool.k, scores.source) == ("own", "own", 6, "leave-one-out")
    assert pool == pool_of(scores)
    run_study(study, store)
    assert study_table(study, store)["heads"].dropna().tolist() == ["leave-one-out"], "the fit that was looked at is no cell"
    other = small(tasks=study.tasks, heads=["leave-one-out"], methods={"lofit": replace(QUICK, offset_lr=3e-2)})
    keys = [Catalogue(one, {"tiny-llama": "f"}).key(scores) for one in (study, other)]
    assert keys[0] != keys[1]


def test_a_share_of_heads_is_one_of_all_where_few_were_left_out(tmp_path):
    study, store = small(tasks={"kinship": Kinship(**SIZES)}, heads=["leave-one-out"], k=[0.25]), RunStore(tmp_path)
    run_study(study, store)
    (scores,) = [
        scores for selection, scores in studies.head_scores(study, store).items() if selection.source == "leave-one-out"
    ]
    assert len(scores.rank()) == 9
    (fit,) = [run.fit for cell, run in studies.runs(study, store).items() if cell.method is not None]
    assert fit.intervention.heads == scores.top(3)


def test_more_heads_to_leave_out_than_there_are_is_refused_before_anything_is_run(tmp_path, as_users_run_it):
    study = small(heads=["own", "leave-one-out"], k=[5])
    with pytest.raises(ValueError, match="15"):
        run_study(study, RunStore(tmp_path))
    assert RunStore(tmp_path).folders() == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_study_in_bfloat16_multiplies_in_float32_where_the_processor_cannot(tmp_path, monkeypatch, dtype):
    rounded = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(
        bfloat16, "_is_short", lambda value: getattr(value, "dtype", None) == torch.bfloat16 and not rounded.append(1)
    )
    study = small(tasks={"kinship": Kinship(**SIZES)}, heads=["own"], dtype=dtype)
    run_study(study, RunStore(tmp_path))
    assert bool(rounded) == (dtype == "bfloat16")
    assert set(study_status(study, RunStore(tmp_path))["state"]) == {"done"}


def test_the_table_has_the_studys_names(done):
    study, store = done
    table = study_table(study, store)
    assert len(table) == len(list(study.cells()))
    assert set(table["task"]) == {"kinship", "told"}
    assert set(table["method"]) == {"base", "lofit", "red"}
    renamed = Study(
        **{**vars(study), "tasks": {"kin": study.tasks["kinship"]}, "heads": ["own"], "methods": {"l": study.methods["red"]}}
    )
    assert set(study_table(renamed, store)["task"]) == {"kin"}, "the same work under other names is found"
    assert {cell.name for cell in studies.runs(study, store)} == {cell.name for cell in study.cells()}
    scores = studies.head_scores(study, store)
    assert {selection.source for selection in scores} == {"own", "iti", "random"}
    assert "k" not in scores[Selection("tiny-llama", "own", "kinship", "lofit", k=2, seed=0)].made_by["settings"]


def test_nothing_is_done_twice(done):
    study, store = done
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    run_study(study, store)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before


def test_what_a_process_killed_after_its_last_result_has_left_is_cleared_up(done, tmp_path):
    study, store = done
    copy = RunStore(shutil.copytree(store.root, tmp_path / "copy"))
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    one, other, held = (catalogue.key(cell) for cell in list(study.cells())[:3])
    (copy.unfinished_folder(one) / "fit").mkdir(parents=True)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    for key in (one, other):
        files.write_json_atomically(
            copy.root / "leases" / f"{key}.json", {"token": "t", "host": files.this_host(), "pid": int(gone.stdout)}
        )
    copy.unfinished_folder(held).mkdir(parents=True)
    with copy.lease(held) as is_ours:  # by somebody who has stored a result a moment ago
        assert is_ours
        run_study(study, copy)
        assert [path.name for path in copy.root.glob("unfinished/*")] == [held]
    assert not list(copy.root.glob("leases/*.json"))


def test_only_what_is_missing_is_done(done, tmp_path):
    study, store = done
    copy = RunStore(shutil.copytree(store.root, tmp_path / "copy"))
    lost = [folder for folder in copy.folders() if ".red." in folder.name]
    for folder in lost:
        shutil.rmtree(folder)
    n_before = len(copy.journal())
    run_study(study, copy)
    assert len(copy.journal()) == n_before + len(lost) > n_before


def test_the_time_table_adds_up(done):
    study, store = done
    times = time_table(study, store).set_index("part")
    assert (times["seconds"] >= -0.01).all(), "the model is loaded before the first item, and belongs to it all the same"
    assert times.loc["together", "seconds"] == pytest.approx(sum(entry["total"] for entry in store.journal()))
    assert times.loc[["scores", "fit", "choose", "evaluate"], "of unavoidable"].sum() == pytest.approx(1)
    assert (times["seconds"] >= 0).all()
    assert times.loc["load", "times"] == 1, "the model stays loaded"


# What goes wrong


def test_a_cell_that_fails_is_marked_and_the_rest_goes_on(tmp_path, monkeypatch):
    study, store = small(methods={"lofit": QUICK, "red": RED(epochs=1)}), RunStore(tmp_path)
    whole = RED.fit

    def fit(self, model, task, *, seed=0):
        if task.name == "kinship":
            raise NonFiniteLossError("the loss is nan at step 1")
        return whole(self, model, task, seed=seed)

    monkeypatch.setattr(RED, "fit", fit)
    table = run_study(study, store)
    states = study_status(study, store)
    assert len(table) == len(list(study.cells())) - 1
    failed = states[states["state"] == "failed"]
    assert failed["item"].tolist() == ["tiny-llama.kinship.red.seed0"]
    assert failed["error"].tolist() == ["NonFiniteLossError: the loss is nan at step 1"]
    (mark,) = (json.loads(path.read_text()) for path in store.root.glob("failures/*.json"))
    assert "in fit" in "".join(mark["traceback"])

    run_study(study, store)
    assert "failed" in set(study_status(study, store)["state"]), "it is not tried again by itself"
    monkeypatch.undo()
    assert retry_study(study, store) == ["tiny-llama.kinship.red.seed0"]
    run_study(study, store)
    assert set(study_status(study, store)["state"]) == {"done"}


def test_what_starts_from_a_failure_is_blocked(tmp_path, monkeypatch):
    study, store = small(), RunStore(tmp_path)

    def select(self, model, task, *, seed=0):
        raise MemoryError("no room")

    monkeypatch.setattr(LoFiT, "select", select)
    run_study(study, store)
    counts = study_status(study, store).groupby(["kind", "state"]).size().to_dict()
    assert counts == {("cell", "blocked"): 4, ("cell", "done"): 2, ("head scores", "failed"): 2}


def test_a_model_that_cannot_be_loaded_leaves_the_others(tmp_path):
    study, store = small(models=["tiny-nothing", "tiny-llama"], methods={}), RunStore(tmp_path)
    with pytest.raises(ValueError, match="tiny-nothing was left out: no tiny model of family"):
        run_study(study, store)
    assert study_table(study, store)["model"].tolist() == ["tiny-llama"] * 2


def test_a_model_that_cannot_be_loaded_any_more_leaves_the_others(tmp_path, monkeypatch):
    study, store = small(models=["tiny-gpt2", "tiny-llama"], methods={}), RunStore(tmp_path)
    store.note_fingerprint("tiny-gpt2", "float32", "of another day")
    whole = studies.work.load_model

    def load(name, **settings):
        if name == "tiny-gpt2":
            raise PermissionError("its licence")
        return whole(name, **settings)

    monkeypatch.setattr(studies.work, "load_model", load)
    with pytest.raises(ValueError, match=r"tiny-gpt2 was left out: .*its licence"):
        run_study(study, store)
    assert study_table(study, store)["model"].tolist() == ["tiny-llama"] * 2


def test_what_is_asked_for_again_while_a_study_runs_is_done(tmp_path, monkeypatch):
    study, store = small(heads=["own"]), RunStore(tmp_path)
    whole, asked = LoFiT.select, []

    def select(self, model, task, *, seed=0):
        asked.append(task.name)
        if len(asked) == 1:
            raise MemoryError("no room")
        return whole(self, model, task, seed=seed)

    def evaluate(model, task, edit=None, **settings):
        retry_study(study, store)
        return ll.evaluate(model, task, edit, **settings)

    monkeypatch.setattr(LoFiT, "select", select)
    monkeypatch.setattr(studies.work, "evaluate", evaluate)
    # The cells of a failure that come right behind it are blocked, and let go of.
    monkeypatch.setattr(
        Catalogue, "items", lambda self, model: sorted(items(self, model), key=lambda item: item.name[-6:] != "scores")
    )
    run_study(study, store)
    assert set(study_status(study, store)["state"]) == {"done"}


def test_another_model_of_the_same_name_is_refused(tmp_path):
    study, store = small(methods={}), RunStore(tmp_path)
    store.note_fingerprint("tiny-llama", "float32", "another")
    with pytest.raises(ValueError, match=r"'tiny-llama' is another model .* use another store"):
        run_study(study, store)


def test_missing_data_are_found_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path / "none"))
    study = small(tasks={"kinship": Kinship(**SIZES), "clutrr": ll.tasks.CLUTRR(data_dir=tmp_path)})
    with pytest.raises(FileNotFoundError, match="clutrr"):
        run_study(study, RunStore(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_process_that_dies_too_often_at_an_item_leaves_it_alone(tmp_path):
    study, store = small(), RunStore(tmp_path)
    worker = Worker(study, store)
    catalogue = worker.catalogue("tiny-llama")
    cell = next(study.cells())
    note = store.unfinished_folder(catalogue.key(cell)) / "attempt.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"deaths": 4, "reached": [], "spent": 0.0}))
    assert worker.attempt(cell, catalogue)
    assert "5 processes have died here" in store.failure(catalogue.key(cell))["message"]
    store.forget_failure(catalogue.key(cell))
    note.write_text(json.dumps({"deaths": 4, "reached": ["another checkpoint"], "spent": 0.0}))
    assert worker.attempt(cell, catalogue), "it has got further since, so that the count starts anew"
    assert store.find(catalogue.settings(cell))


def test_what_cannot_be_judged_is_not_trained(tmp_path):
    study, store = small(metric="mc1", heads=["random"], tasks={"kinship": Kinship(**SIZES)}), RunStore(tmp_path)
    run_study(study, store)
    assert set(study_status(study, store).query("kind == 'cell'")["state"]) == {"failed"}
    assert not list(store.root.glob("unfinished/*/fit/*"))


def test_more_heads_than_a_model_has_are_refused_before_anything_is_run(tmp_path):
    study, store = small(k=[2, 5000]), RunStore(tmp_path)
    with pytest.raises(ValueError, match="k = 5000 heads asked for; wanted 1 to 12"):
        run_study(study, store)
    assert store.journal() == []


def test_scores_that_are_all_nan_are_no_scores(tmp_path, monkeypatch):
    nothing = ll.HeadScores(torch.full((3, 4), torch.nan), "nothing")
    monkeypatch.setattr(studies.work, "scores_for", lambda *_: nothing)
    study, store = small(heads=["gradient-norm"]), RunStore(tmp_path)
    run_study(study, store)
    scores = Selection("tiny-llama", "gradient-norm", "kinship")
    assert store.failure(Catalogue(study, store.fingerprints(study.dtype)).key(scores))
    assert not list(store.root.glob("scores/*"))


def test_a_fit_that_could_not_be_judged_is_not_fitted_again(tmp_path, monkeypatch):
    study, store = small(heads=["random"], tasks={"kinship": Kinship(**SIZES)}), RunStore(tmp_path)

    def full(*_, **__):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(studies.work, "evaluate", full)
        run_study(study, store)
    (stage,) = store.root.glob("unfinished/*/fit/*")
    note = stage.parents[1] / "attempt.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "spent": 500.0}))
    os.utime(note, (0, 0))
    os.utime(stage, (100, 100))
    written = stage.stat().st_mtime_ns
    retry_study(study, store)
    assert stage.stat().st_mtime_ns == written
    trained = []
    monkeypatch.setattr("lofit_lens.fitting.accumulate_gradient", lambda *_: trained.append(1))
    seconds = run_study(study, store).query("method == 'lofit'")["fit_seconds"]
    assert not trained
    assert seconds.item() == pytest.approx(600, abs=5), "its own seconds and those of the attempt before"


def test_what_a_stage_left_is_forgotten_if_it_cannot_be_used(tmp_path):
    study, store = small(heads=["random"], tasks={"kinship": Kinship(**SIZES)}), RunStore(tmp_path)
    worker = Worker(study, store)
    cell = next(cell for cell in study.cells() if cell.method)
    folder = store.unfinished_folder(worker.catalogue("tiny-llama").key(cell)) / "fit"
    folder.mkdir(parents=True)
    (folder / "stage-1.safetensors").write_bytes(b"nonsense")
    run_study(study, store)
    assert len(retry_study(study, store)) == 1
    assert len(run_study(study, store)) == 2


def test_what_somebody_is_at_is_left_to_them(tmp_path):
    study, store = small(), RunStore(tmp_path)
    worker = Worker(study, store)
    catalogue = worker.catalogue("tiny-llama")
    cell = next(study.cells())
    with store.lease(catalogue.key(cell)):
        assert not worker.attempt(cell, catalogue)
        assert study_status(study, store).set_index("item").loc[cell.name, "state"] == "running"
    assert worker.attempt(cell, catalogue)


# Before and after


def test_a_plan_counts_what_there_is_to_do_without_a_model(done, tmp_path):
    study, store = done
    ahead = plan(study, RunStore(tmp_path))
    assert ahead.items["kind"].value_counts().to_dict() == {"cell": 38, "head scores": 14}
    assert ahead.by_task()["pieces"].sum() == 52
    assert set(ahead.items["state"]) == {"to do"}
    assert ahead.seconds > 0
    assert ahead.disk > 0
    assert not list(tmp_path.iterdir())
    after = plan(study, store)
    assert set(after.items["state"]) == {"done"}
    assert (after.seconds, after.disk) == (0, 0)


def test_a_plan_is_made_of_tasks_that_have_lists(tmp_path):
    @dataclass(frozen=True)
    class Words(ll.tasks.Task):
        words: list[str]
        name, loss, metric, chance = "words", "cross_entropy", "exact_match", 0.0

        def build(self, split):
            return [ll.tasks.Example(word, " a") for word in self.words]

    assert plan(small(tasks={"words": Words(["b", "c"])}, heads=["own"]), RunStore(tmp_path)).seconds > 0


def test_activations_are_collected_once(tmp_path, monkeypatch):
    whole, passes = activations._run, []
    monkeypatch.setattr(activations, "_run", lambda *of_pass: (passes.append(of_pass), whole(*of_pass)))
    tasks = {"kinship": Kinship(**SIZES)}
    study, store = small(tasks=tasks, heads=["own", "layer-probes"], methods={"iti": ITI()}), RunStore(tmp_path)
    run_study(study, store)
    assert set(study_status(study, store)["state"]) == {"done"}
    assert len(passes) == 1


def test_what_was_measured_is_what_is_expected(done, tmp_path):
    study, store = done
    copy = RunStore(shutil.copytree(store.root, tmp_path / "copy"))
    spent = {entry["key"]: entry["total"] for entry in copy.journal()}
    for folder in copy.folders():
        shutil.rmtree(folder)
    cells = {folder.name[-16:] for folder in store.folders()}
    expected = plan(study, copy).seconds
    assert expected == pytest.approx(sum(seconds for key, seconds in spent.items() if key in cells), rel=0.7)


def test_two_byte_numbers_are_planned_at_twice_the_speed_at_most():
    speeds = {dtype: _operations_per_second(dtype) for dtype in ("float32", "bfloat16")}
    assert 0 < speeds["bfloat16"] <= 2 * speeds["float32"]


def test_a_plan_goes_on_where_data_are_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path / "none"))
    study = small(models=["org/llama-2-7b"], tasks={"clutrr": ll.tasks.CLUTRR(data_dir=tmp_path)}, heads=["own"])
    ahead = plan(study, RunStore(tmp_path))
    assert len(ahead.items) == 3
    assert "clutrr" in ahead.notes[0]
    assert ahead.seconds > plan(replace(study, models=("org/llama-2-70m",)), RunStore(tmp_path)).seconds > 0
    assert torch.tensor(plan(replace(study, models=("org/secret",)), RunStore(tmp_path)).seconds).isnan()


def test_leftovers_are_what_nobody_needs(done, tmp_path):
    study, store = done
    copy = RunStore(shutil.copytree(store.root, tmp_path / "copy"))
    key = copy.folders()[0].name[-16:]
    (copy.unfinished_folder(key) / "fit").mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid in (child.pid, os.getpid()):
        (copy.root / "runs" / f"{files._scratch_prefix(Path('draft'))}{pid}.abcdef01.tmp").mkdir()
    copy.mark_failed(key, {"error": "WorkerCrashedError", "message": "somebody else has done it since"})
    assert retry_study(study, copy) == []
    found = {leftover.path.relative_to(copy.root).parts[0]: leftover.why for leftover in studies.leftovers(study, copy)}
    gone = {"unfinished": "finished", "activations": "finished", "residuals": "finished"}
    assert found == {**gone, "failures": "finished", "runs": "left by a killed process"}
    drafts = [leftover.path for leftover in studies.leftovers(study, copy) if leftover.path.suffix == ".tmp"]
    assert [str(child.pid) in path.name for path in drafts] == [True], "what this process writes is left to it"
    less = Study(**{**vars(study), "methods": {"red": study.methods["red"]}})
    with copy.lease("another study's"):
        at_work = studies.leftovers(less, copy, of_others=True)
    kinds = {leftover.path.parent.name for leftover in at_work if leftover.why != "left by a killed process"}
    assert not {"activations", "residuals", "runs", "scores"} & kinds, "who is at work may be reading them"
    others = [leftover for leftover in studies.leftovers(less, copy, of_others=True) if leftover.why == "not of this study"]
    assert {leftover.path.parent.name for leftover in others} == {"runs", "scores"}
    for leftover in others:
        leftover.remove()
    assert len(copy.folders()) == len(list(less.cells()))
    assert set(study_status(less, copy)["state"]) == {"done"}
