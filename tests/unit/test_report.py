"""The report: what it refuses, what is in it, and that no text of data is mark-up. Its page in a browser: `tests/real`."""

import dataclasses
import json
import math
import re

import pandas as pd
import pytest
import torch
from plotly.offline import get_plotlyjs_version
from typer.testing import CliRunner

import lofit_lens as ll
from lofit_lens import cli, results
from lofit_lens.report import figures, heads, page, tables
from lofit_lens.report.sources import Findings, ShownRun, read_sources
from lofit_lens.report.transfers import transfers

EVIL = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script>\'"&\u2028'


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_study):
    return write_study(tmp_path_factory.mktemp("study"))


def ids_of(page):
    return re.findall('<section id="([a-z]+)"', page)


def test_every_kind_of_result_has_figures_and_tables():
    kinds = set(results.KINDS.values())
    assert set(figures.FIGURES) == set(tables.TABLES) == kinds


def test_plotly_in_a_page_is_of_the_version_that_makes_its_figures():
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}" in page.PLOTLY.read_text(encoding="utf-8")[:200]


def test_a_page_has_the_sections_that_there_is_something_for(study, tmp_path):
    page = ll.write_report([study], tmp_path / "new" / "all.html", title="A study").read_text(encoding="utf-8")
    assert ids_of(page) == ["overview", "heads", "results", "tokens"]
    assert "<title>A study</title>" in page
    assert "3 runs, 11 results" in page
    assert page.count("each on a scale of its own") == 1
    assert page.count('id="plotly"') == page.count('id="circuitsvis"') == 1
    assert not re.search("<script src|<link rel=.stylesheet|@import", page)
    of_runs = ll.write_report([study / "runs"], tmp_path / "runs.html").read_text(encoding="utf-8")
    assert ids_of(of_runs) == ["overview", "heads", "tokens"]
    assert "None yet: runs keep edits and outcomes" in of_runs
    assert "None yet" not in page
    assert 'id="circuitsvis"' not in of_runs
    of_one = ll.write_report([study / "results" / "evaluation.json"], tmp_path / "one.html").read_text(encoding="utf-8")
    assert ids_of(of_one) == ["results"]
    assert len(of_one) < 100_000  # no figure, so no library


def test_the_same_data_give_the_same_page(study, tmp_path):
    first, second = (ll.write_report([study], tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_what_is_known_of_runs(study):
    found = read_sources([study / "runs", study / "runs" / f"{1:016x}"])  # the second is there already
    assert [run.label for run in found.runs] == [f"task {i}, LoFiT, seed 0" for i in range(3)]
    run = found.runs[1]
    assert (run.model, run.n_layers, run.n_parameters, len(run.heads)) == ("tiny", 12, 36, 9)
    assert run.evaluation.value == 3 / 40
    row = dict(zip(tables.overview(found.runs).columns, tables.overview(found.runs).rows[1], strict=True))
    assert row["Value"].number == 3 / 40
    assert row["Value"].text == "0.07 [0.03, 0.20]"
    assert row["Settings"].text == "k = 9, note = "


def test_an_adapter_that_a_run_has_is_shown_once_and_others_are_runs_without_numbers(study, tmp_path):
    adapter = ll.HeadIntervention.load(study / "runs" / f"{0:016x}" / "adapter")
    adapter.save(tmp_path / "same")
    (0.5 * adapter).save(tmp_path / "half")
    found = read_sources([study / "runs", tmp_path])
    assert len(found.runs) == 4
    [half] = [run for run in found.runs if run.evaluation is None]
    assert half.method == "0.5 x LoFiT"


def test_scores_are_shown_on_one_scale_and_once(study, tmp_path):
    found = read_sources([study / "runs"])
    ll.save_result(found.runs[0].scores, tmp_path / "again.json")
    scored = heads.all_scores(read_sources([study / "runs", tmp_path]))
    assert len(scored) == 3
    [(_, drawn)] = heads.head_maps(
        [*scored, dataclasses.replace(scored[0], scores=ll.HeadScores(torch.ones(12, 8) * 5, "norm "))]
    )
    assert [figure.layout.coloraxis.cmax for figure in drawn] == [5.0, 5.0]
    assert len(drawn[0].layout.shapes) == 27
    assert len(heads.overlaps(scored)) == 1


def fitted(name, *, model, seed=0, n_train=40, scale_lr=1e-3, fingerprint=None):
    """A run of a task on a model of one size."""
    torch.manual_seed(hash((name, model, seed)) % 2**31)
    scores = ll.HeadScores(torch.rand(30, 9), "norm")
    return ShownRun(
        "", name, "LoFiT", seed, model, fingerprint or f"print of {model}", {"k": 0.1, "scale_lr": scale_lr},
        {"n_train": n_train}, heads=scores.top(0.1), n_layers=30, scores=scores,
    )  # fmt: skip


def compared(*runs):
    found = heads.all_scores(Findings(runs, {}))
    [overlap] = heads.overlaps(found)
    frame = overlap.to_frame()
    diagonal = frame[(frame["a"] == frame["b"]) & (frame["measure"] == "overlap")]
    return overlap.names, list(diagonal["a"])


def test_runs_of_two_models_are_no_seeds_of_one_task():
    of_base, of_instruct = (fitted("kinship", model=f"{kind}-model") for kind in ("base", "instruct"))
    assert compared(of_base, of_instruct) == (("kinship, base-model", "kinship, instruct-model"), [])
    found = heads.all_scores(Findings((of_base, of_instruct), {}))
    maps = heads.head_maps(found)
    assert [what.partition(":")[0] for what, _ in maps] == ["base-model", "instruct-model"]
    titles = [[note.text for note in figure.layout.annotations] for _, [figure] in maps]
    assert titles == [[f"kinship<br>LoFiT, seed 0<br>{kind}-model"] for kind in ("base", "instruct")]
    [histogram] = heads.layer_histograms(Findings((of_base, of_instruct), {}), found)
    assert [bars.name for bars in histogram.data] == [f"kinship, LoFiT, seed 0, {kind}-model" for kind in ("base", "instruct")]
    one_name = [fitted("kinship", model="m", fingerprint=f"{i}" * 16, seed=i) for i in range(2)]
    assert compared(*one_name) == (("kinship, m 00000000", "kinship, m 11111111"), [])


def test_runs_of_other_settings_are_no_seeds_of_one_task():
    runs = [fitted("kinship", model="m", seed=seed) for seed in range(2)]
    assert compared(*runs) == (("kinship",), ["kinship"])
    more = fitted("kinship", model="m", seed=2, n_train=300)
    assert compared(*runs, more) == (("kinship, n_train = 40", "kinship, n_train = 300"), ["kinship, n_train = 40"])
    faster = fitted("kinship", model="m", seed=2, scale_lr=1e-2)
    assert compared(*runs, faster)[0] == ("kinship, scale_lr = 0.001", "kinship, scale_lr = 0.01")
    other_task = fitted("truth", model="m", n_train=300)  # a task of its own size is just that
    assert compared(*runs, other_task) == (("kinship", "truth"), ["kinship"])


def test_scores_alone_tell_their_model_and_are_no_seeds_of_one_task_either():
    made_by = {"task": "kinship", "method": "LoFiT", "settings": {"k": 2}, "seed": 0}
    of_models = {
        f"file {kind}": ll.HeadScores(torch.rand(3, 4), "norm", made_by, base_model={"name": kind})
        for kind in ("base", "instruct")
    }
    found = heads.all_scores(Findings((), of_models))
    assert [one.origin.model for one in found] == ["base", "instruct"]
    assert [one.name for one in found] == ["kinship, LoFiT, seed 0, base", "kinship, LoFiT, seed 0, instruct"]
    assert heads.overlaps(found)[0].names == ("kinship, base", "kinship, instruct")


def test_scores_of_no_task_are_named_by_their_method_and_others_by_their_file():
    drawn = {f"{seed}": ll.random_scores(ll.tiny_model("llama"), seed=seed) for seed in range(2)}
    found = heads.all_scores(Findings((), drawn | {"mine": ll.HeadScores(torch.rand(3, 4))}))
    assert [one.name for one in found] == ["random, seed 0", "random, seed 1", "mine"]
    assert heads.overlaps(found)[0].names == ("random", "mine")


@pytest.fixture(scope="module")
def lending(tmp_path_factory):
    """A study on its own, others' and random heads, run; and its store."""
    sizes = {"n_train": 4, "n_val": 2, "n_test": 4}
    study = ll.Study(
        "lending",
        models=("tiny-llama",),
        tasks={"kinship": ll.tasks.Kinship(**sizes), "told": ll.tasks.Counterfactual(**sizes)},
        methods={"lofit": ll.methods.LoFiT(scale_epochs=1, offset_epochs=1)},
        heads=("own", "others", "random", "iti"),
        k=(1, 2),
        seeds=(0, 1),
        n_train=(3,),
    )
    store = ll.RunStore(tmp_path_factory.mktemp("lending"))
    ll.run_study(study, store)
    return study, store


def test_runs_of_a_study_are_its_transfer_of_heads(lending):
    study, store = lending
    found = transfers(read_sources([store.root]).runs)
    assert [one.name for one in found] == [f"lofit, k = {k}, n_train = 3, tiny-llama" for k in ("1", "2")]
    for k, one in zip(study.k, found, strict=True):
        expected = ll.study.head_transfer_of(study, store, k=k)
        rows = one.found.matrix()
        assert set(rows.index) == {"kinship", "told", "ITI", "random", "base"}
        assert list(rows.columns) == ["kinship", "told"]
        assert one.found.sources[:2] == ("kinship", "told")
        assert one.found.sources[-1] == "base"
        pd.testing.assert_frame_equal(rows.loc[list(expected.sources)], expected.matrix())
        assert one.note == ""


def test_a_page_of_a_store_shows_the_transfer(lending, tmp_path):
    page = ll.write_report([lending[1].root], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "transfer" in ids_of(page)
    assert '<article class="card" id="transfer-2"' in page
    assert "Heads from (source) and tasks learned (target)" in page
    assert "kinship, LoFiT, heads: random, seed 0" in page


def test_what_is_not_done_is_left_out_of_the_transfer_and_two_studies_are_not_one(lending):
    runs = read_sources([lending[1].root]).runs
    [missing] = [
        run for run in runs if [run.labels[name] for name in ("task", "heads", "k", "seed")] == ["told", "random", 1, 1]
    ]
    first, _ = transfers([run for run in runs if run is not missing])
    assert first.note == "Left out, as not every seed is done: told on random."
    assert math.isnan(first.found.matrix().loc["random", "told"])
    again, _ = transfers([*runs, dataclasses.replace(missing, folder="another")])
    assert again.found is None
    assert again.note.startswith("No matrix: two runs of told on heads 'random' with seed 1")
    assert transfers([run for run in runs if run.labels["heads"] in (None, "own")]) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "there is no"),
        (lambda folder: folder, "in which nothing can be shown; wanted folders of runs"),
        (lambda folder: _written(folder / "notes.json", "{}"), "holds no result"),
        (lambda folder: _written(folder / "notes.txt", "hello"), "holds no result"),
        (lambda folder: _written(folder / "cut.json", "{").parent, "cut.json is no JSON"),
        (lambda folder: _written(folder / "run.json", '{"settings": {}}').parent, "is damaged"),
    ],
)
def test_anything_else_is_refused_before_anything_is_written(tmp_path, make, message):
    (tmp_path / "in").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ll.write_report([make(tmp_path / "in")], tmp_path / "out" / "page.html")
    assert not (tmp_path / "out").exists()


def _written(path, text):
    path.write_text(text)
    return path


def test_no_sources_and_one_path_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got no sources"):
        ll.write_report([], tmp_path / "page.html")
    with pytest.raises(ValueError, match="got one path"):
        ll.write_report(str(tmp_path), tmp_path / "page.html")


def test_files_of_others_beside_results_are_left_alone(study, tmp_path):
    _written(tmp_path / "other.json", '{"a": 1}')
    _written(tmp_path / ".draft.json", "{")
    ll.save_result(ll.HeadScores(torch.rand(2, 2)), tmp_path / "scores.json")
    assert list(read_sources([tmp_path]).results) == ["scores"]


def test_no_text_of_data_is_markup(tmp_path, write_study):
    page = ll.write_report([write_study(tmp_path, text=EVIL)], tmp_path / "page.html", title=EVIL).read_text(encoding="utf-8")
    assert 'onerror="window' not in page
    assert "<img" not in re.sub('<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert "<script>window" not in page
    scripts = re.findall("<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    # Whatever is data can be read as JSON to its end; then there are two libraries and the page's own script.
    blocks = re.findall('<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL)
    assert all(json.loads(block) for block in blocks)
    assert len(scripts) == len(blocks) + 3
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in page


def test_a_result_that_cannot_be_drawn_says_so(tmp_path):
    ll.save_result(ll.analysis.TransferTable({}, (), ()), tmp_path / "transfer.json")
    page = ll.write_report([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No figure: the table has no cells to draw" in page


def test_the_command(study, tmp_path):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(
        cli.app, ["report", str(study / "runs"), str(study / "results"), "--out", str(out), "--title", "X"]
    )
    assert done.exit_code == 0, done.output
    assert "MB); open it in a browser" in done.output
    assert "<h1>X</h1>" in out.read_text(encoding="utf-8")
