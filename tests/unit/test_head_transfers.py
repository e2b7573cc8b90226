"""Tasks on each other's heads, next to their own: numbers worked by hand, the table for a paper, and a study's transfer."""

import dataclasses
import logging
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

import lofit_lens as ll
from lofit_lens.analysis import HeadTransfer, head_transfer
from lofit_lens.comparison import paired_difference, relative_effect
from lofit_lens.latex import escaped
from lofit_lens.methods import LoFiT, LoRA
from lofit_lens.outcomes import Evaluation
from lofit_lens.runs import Run
from lofit_lens.study import head_transfer_of, runs
from lofit_lens.study.items import Catalogue
from lofit_lens.study.settings import Skip
from lofit_lens.tasks import IOI, Kinship


def judged(outcomes: str, task: str = "kinship", metric: str = "exact_match", **settings: object) -> Evaluation:
    """`judged("110")`: right, right, wrong."""
    return Evaluation(task, "test", metric, {metric: tuple(map(float, outcomes))}, task_settings=settings)


def same(outcomes: str, **kwargs: str) -> dict[int, Evaluation]:
    """Under two seeds that agree."""
    return dict.fromkeys((0, 1), judged(outcomes, **kwargs))


OF_TRUTH = {"task": "truth", "metric": "mc1"}
CELLS = {
    ("kinship", "kinship"): same("11111110"),
    ("truth", "kinship"): same("00111110"),
    ("random", "kinship"): same("00011110"),
    ("ITI", "kinship"): same("11111110"),
    ("base", "kinship"): same("00000000"),
    ("kinship", "truth"): same("11110000", **OF_TRUTH),
}
SOURCES, TARGETS = ("kinship", "truth", "ITI", "random", "base"), ("kinship", "truth")
RESULT = head_transfer(CELLS, SOURCES, TARGETS)


def cell(source: str, target: str, result: HeadTransfer = RESULT) -> dict[str, object]:
    frame = result.to_frame()
    return frame[(frame["source"] == source) & (frame["target"] == target)].iloc[0].to_dict()


def test_numbers_worked_by_hand():
    # The difference is -1 on two of eight examples: mean -1/4, s^2 = 8/7 * 3/16, SE = sqrt(s^2 / 8), and t[7] = 2.3646.
    row = cell("truth", "kinship")
    assert row["value"] == 5 / 8
    assert row["difference"] == -1 / 4
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((-0.6371, 0.1371), abs=1e-4)
    assert (row["p_less"], row["p_two_sided"]) == pytest.approx((0.0853, 0.1705), abs=1e-4)
    # The ratio's linear form is -40/49 twice, 16/49 five times and 0 once away from 5/7: SE = 0.18254.
    assert row["relative"] == pytest.approx(5 / 7)
    assert (row["relative_low"], row["relative_high"]) == pytest.approx((0.2827, 1.1459), abs=1e-4)
    assert (row["n_examples"], row["n_seeds"], row["metric"]) == (8, 2, "exact_match")
    assert row["detectable"] == paired_difference(*[[[float(x) for x in "00111110"]] * 2, [[1.0] * 7 + [0.0]] * 2]).detectable


def test_marks_and_q_are_those_of_lower_cells():
    assert [cell(source, "kinship")["mark"] for source in SOURCES] == ["", "+", "", "*", ""]
    assert cell("random", "kinship")["p_less"] == pytest.approx(0.0398, abs=1e-4)
    assert cell("ITI", "kinship")["p_less"] == 0.5  # no difference at all
    # Benjamini and Hochberg over three tests, own heads and the base model being none: 0.0398 * 3, 0.0853 * 3 / 2, 0.5.
    found = [cell(source, "kinship")["q_less"] for source in SOURCES]
    assert found == pytest.approx([math.nan, 0.1279, 0.5, 0.1194, math.nan], abs=2e-4, nan_ok=True)


def test_a_better_cell_is_not_marked():
    better = head_transfer({("a", "a"): same("00011110"), ("b", "a"): same("11111110")}, ("a", "b"), ("a",))
    assert cell("b", "a", better)["p_less"] == pytest.approx(1 - 0.0398, abs=1e-4)
    assert cell("b", "a", better)["mark"] == ""


def test_own_heads_are_100_percent_and_the_base_model_is_not_tested():
    own, base = cell("kinship", "kinship"), cell("base", "kinship")
    assert own["relative"] == 1
    assert all(math.isnan(own[name]) for name in ("relative_low", "difference", "p_less", "q_less", "detectable"))
    assert base["difference"] == -7 / 8
    assert all(math.isnan(base[name]) for name in ("p_less", "p_two_sided", "q_less"))


def test_without_own_heads_there_is_a_value_and_no_comparison():
    row = cell("kinship", "truth")
    assert (row["value"], row["metric"], row["mark"]) == (0.5, "mc1", "")
    assert all(math.isnan(row[name]) for name in ("relative", "difference", "p_less", "detectable"))


def test_an_interval_of_any_ratio_is_missing():
    result = head_transfer({("a", "a"): same("1000"), ("b", "a"): same("0100")}, ("a", "b"), ("a",))
    row = cell("b", "a", result)
    assert row["relative"] == 1
    assert math.isnan(row["relative_low"])
    assert math.isnan(row["relative_high"])


def test_the_matrix_has_sources_as_rows_and_targets_as_columns():
    values = RESULT.matrix()
    assert (list(values.index), list(values.columns)) == (list(SOURCES), list(TARGETS))
    assert values["kinship"].tolist() == [7 / 8, 5 / 8, 7 / 8, 4 / 8, 0]
    assert RESULT.matrix("mark").loc["random", "kinship"] == "*"
    assert np.isnan(values.loc["truth", "truth"])
    with pytest.raises(ValueError, match="got the column 'source', wanted one of metric, n_examples"):
        RESULT.matrix("source")


OWN = {0: judged("11110000"), 1: judged("11101100")}
OTHER = {1: judged("10100000"), 0: judged("11000001")}
TWO_SEEDS = {("a", "a"): OWN, ("b", "a"): OTHER}


@pytest.mark.parametrize("new_seeds", [True, False])
def test_seeds_are_paired_and_intervals_are_about_new_ones_if_wanted(new_seeds):
    ours, theirs = ([evaluation[seed].scores["exact_match"] for seed in (0, 1)] for evaluation in (OTHER, OWN))
    result = head_transfer(TWO_SEEDS, ("a", "b"), ("a",), new_seeds=new_seeds)
    row, expected = cell("b", "a", result), paired_difference(ours, theirs, alternative="less", new_seeds=new_seeds)
    names = ("difference", "difference_low", "difference_high", "p_less", "detectable")
    numbers = (expected.mean, expected.low, expected.high, expected.p, expected.detectable)
    assert tuple(row[name] for name in names) == numbers
    assert row["p_two_sided"] == paired_difference(ours, theirs, new_seeds=new_seeds).p
    ratio = np.array(relative_effect(ours, theirs, new_seeds=new_seeds))
    found = [row[name] for name in ("relative", "relative_low", "relative_high")]
    assert found == pytest.approx(np.where(np.isfinite(ratio), ratio, np.nan), nan_ok=True)
    alone = paired_difference(ours, np.zeros((2, 8)), new_seeds=new_seeds)
    assert (row["value"], row["low"], row["high"]) == (alone.mean, max(alone.low, 0), alone.high)
    assert ("paired over examples and seeds" in result.note) is new_seeds
    assert ("paired bootstrap over examples, about these fits" in result.note) is not new_seeds


def test_one_seed_is_about_that_fit():
    result = head_transfer({place: {0: by_seed[0]} for place, by_seed in TWO_SEEDS.items()}, ("a", "b"), ("a",))
    row = cell("b", "a", result)
    assert row["n_seeds"] == 1
    assert (row["low"], row["high"]) == OTHER[0].interval()
    assert "about these fits" in result.note


def test_an_interval_of_a_value_ends_where_values_do():
    result = head_transfer({("a", "a"): {0: judged("11111110"), 1: judged("11111011")}}, ("a",), ("a",))
    row = cell("a", "a", result)
    assert row["low"] == pytest.approx(0.875 - stats.t.isf(0.025, 7) * math.sqrt(0.125 * 0.375 / 7), abs=1e-4)
    assert row["high"] == 1


def test_what_cannot_be_compared_is_refused():
    places = (("a", "b"), ("a",))
    with pytest.raises(
        ValueError, match=r"got the seeds \[0\] of the heads of 'b' for 'a', wanted \[0, 1\].*evaluate the miss"
    ):
        head_transfer({("a", "a"): OWN, ("b", "a"): {0: OTHER[0]}}, *places)
    with pytest.raises(ValueError, match=r"'n': 4.*wanted those of its own heads.*'n': 8.*or leave the cell out"):
        head_transfer({("a", "a"): OWN, ("b", "a"): same("1100")}, *places)
    with pytest.raises(ValueError, match=r"'n_test': 9.*wanted those of its own heads.*'n_test': 8"):
        head_transfer({("a", "a"): {0: judged("10", n_test=8)}, ("b", "a"): {0: judged("10", n_test=9)}}, *places)
    with pytest.raises(ValueError, match="'metric': 'mc1'"):
        head_transfer({("a", "a"): {0: OWN[0], 1: judged("11110000", metric="mc1")}}, ("a",), ("a",))
    with pytest.raises(ValueError, match=r"got the sources \['a', 'c'\], of which \['a'\] have evaluations"):
        head_transfer(TWO_SEEDS, ("a", "c"), ("a",))
    with pytest.raises(ValueError, match=r"got the targets \['a', 'c'\], of which \['a'\] have evaluations"):
        head_transfer(TWO_SEEDS, ("a",), ("a", "c"))
    with pytest.raises(ValueError, match="wanted at least one, each with a cell or more"):
        head_transfer({}, (), ())


# LaTeX


def test_a_table_for_a_paper():
    lines = RESULT.to_latex().splitlines()
    assert lines[:2] == [r"\begin{table}[t]", r"\centering"]
    assert lines[3:8] == [
        r"\begin{tabular}{lcc}",
        r"\toprule",
        r"Heads of & kinship & truth \\",
        r" & exact match & mc1 \\",
        r"\midrule",
    ]
    low, high = (100 * bound for bound in judged("11111110").interval())
    assert lines[8].startswith(r"kinship & \textbf{87.5} & 50.0 \\")
    assert lines[9].startswith(rf" & {{\scriptsize [{low:.1f}, {high:.1f}]}} & ")
    assert [line for line in lines if line.startswith(("truth", "random"))] == [
        r"truth & 62.5$^{+}$ & -- \\",
        r"random & 50.0$^{*}$ & -- \\",
    ]
    assert lines[-3:] == [r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def test_the_caption_says_what_marks_mean_and_of_how_many():
    caption = RESULT.to_latex().splitlines()[2]
    assert r"{*} (p \textless{} 0.05) and + (p \textless{} 0.1): lower than on the task's own heads" in caption
    assert "paired over examples and seeds, one-sided, not corrected" in caption
    assert "base: the model without an edit, not tested" in caption
    assert "Examples: n = 8, 2 seeds." in caption
    uneven = head_transfer({("a", "a"): {0: judged("1100")}, ("b", "b"): same("110")}, ("a", "b"), ("a", "b"))
    assert "Examples: a n = 4, 1 seed; b n = 3, 2 seeds." in uneven.to_latex()
    assert "base" not in uneven.note


EVIL = "[*] a_b & 50 % of $x^2$ #{1}\\input|<~>\n\nend"


def test_texts_from_data_are_no_commands():
    assert escaped(EVIL) == (
        r"{[}{*}{]} a\_b \& 50 \% of \$x\textasciicircum{}2\$ \#\{1\}\textbackslash{}input\textbar{}\textless{}"
        r"\textasciitilde{}\textgreater{} end"
    )
    table = head_transfer({(EVIL, EVIL): same("10")}, (EVIL,), (EVIL,)).to_latex()
    assert EVIL not in table
    assert table.count(escaped(EVIL)) == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_table_compiles(tmp_path):
    result = head_transfer({**CELLS, (EVIL, "kinship"): same("11111110")}, (*SOURCES, EVIL), TARGETS)
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{result.to_latex()}\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "page.pdf").stat().st_size > 0


# Studies

QUICK = LoFiT(scale_epochs=1, offset_epochs=1)
SMALL = {"n_val": 2, "n_test": 4}
STUDY = ll.Study(
    "lending",
    models=("tiny-llama",),
    tasks={"ioi": IOI(n_train=4, **SMALL), "kinship": Kinship(n_train=4, **SMALL)},
    methods={"lofit": QUICK, "lora": LoRA()},
    heads=("own", "others", "random", "iti"),
    k=(2,),
    seeds=(0, 1),
)
OUTCOMES = {"own": "1111", "ioi": "1010", "kinship": "0110", "random": "0010", "iti": "1110", None: "0000"}


@pytest.fixture
def filled(llama, tmp_path):
    """`filled(study)`: a store that has every cell of a study, with made-up outcomes."""

    def fill(study: ll.Study, **numbers: str) -> ll.RunStore:
        store = ll.RunStore(tmp_path / "store")
        for model in study.models:
            store.note_fingerprint(model, study.dtype, f"fingerprint of {model}")
        catalogue = Catalogue(study, store.fingerprints(study.dtype))
        for cell in study.cells():
            settings = study.task_at(cell.task, cell.n_train).settings()
            outcomes = "0101" if cell.method == "lora" or cell.k == 3 else numbers.get(cell.model, OUTCOMES[cell.heads])
            evaluation = judged(outcomes, cell.task, **settings)
            store.put(Run(catalogue.settings(cell), None, evaluation, cell.labels), llama)
        return store

    return fill


def test_a_study_has_a_row_for_every_source_of_heads(filled):
    result = head_transfer_of(STUDY, filled(STUDY))
    assert (result.sources, result.targets) == (("ioi", "kinship", "ITI", "random", "base"), ("ioi", "kinship"))
    assert result.matrix().to_numpy().tolist() == [[1, 0.5], [0.5, 1], [0.75, 0.75], [0.25, 0.25], [0, 0]]
    assert set(result.cells["n_seeds"]) == {2}
    assert result.new_seeds
    assert not head_transfer_of(STUDY, filled(STUDY), new_seeds=False).new_seeds


def test_one_model_method_k_and_size_are_picked_and_must_be_said(filled):
    two = dataclasses.replace(
        STUDY, models=("tiny-llama", "tiny-gpt2"), methods={"a": QUICK, "b": QUICK}, k=(2, 3), n_train=(4, 8)
    )
    store, said = filled(two, **{"tiny-gpt2": "0011"}), {"model": "tiny-llama", "method": "a", "k": 2, "n_train": 4}
    assert head_transfer_of(two, store, **said).matrix().loc["random", "kinship"] == 0.25
    other = head_transfer_of(two, store, **said | {"model": "tiny-gpt2"})
    assert other.matrix().to_numpy().tolist() == [[0.5, 0.5]] * 5
    assert head_transfer_of(two, store, **said | {"k": 3}).matrix().loc["random", "kinship"] == 0.5
    for name, known in {"model": "'tiny-llama', 'tiny-gpt2'", "method": "'a', 'b'", "k": "2, 3", "n_train": "4, 8"}.items():
        with pytest.raises(ValueError, match=re.escape(f"got {name}=None, and the study has {known}; say {name}= one of")):
            head_transfer_of(two, store, **said | {name: None})
    with pytest.raises(ValueError, match="got k=5, and the study has 2, 3"):
        head_transfer_of(two, store, **said | {"k": 5})
    with pytest.raises(ValueError, match="got method='lora', and the study has 'lofit'"):
        head_transfer_of(STUDY, store, method="lora")


def test_a_task_of_which_nothing_is_learned_at_that_k_is_no_column(filled, caplog):
    skipped = dataclasses.replace(STUDY, k=(2, 3), skip=(Skip(task="ioi", k=3),))
    assert head_transfer_of(skipped, filled(skipped), k=3).targets == ("kinship",)
    assert caplog.messages == [], "nor is it one that is not done"
    nothing = dataclasses.replace(STUDY, methods={})
    with pytest.raises(ValueError, match="got method=None"):
        head_transfer_of(nothing, filled(nothing))


def test_a_cell_without_every_seed_is_left_out_with_a_warning(filled, caplog):
    store = filled(STUDY)
    [folder] = store.root.glob("runs/tiny-llama.kinship.lofit.random.*seed1*")
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        values = head_transfer_of(STUDY, store).matrix()
    assert caplog.messages == ["lending: left out, as not every seed is done: kinship on random"]
    assert np.isnan(values.loc["random", "kinship"])
    assert values.loc["random", "ioi"] == 0.25
    with pytest.raises(ValueError, match=r"no such cell of 'lending' is done with every seed of \[0, 1\]"):
        head_transfer_of(STUDY, ll.RunStore(store.root / "empty"))


def test_a_task_that_is_called_as_a_row_is_refused(tmp_path):
    study = dataclasses.replace(STUDY, tasks={"base": Kinship()})
    with pytest.raises(ValueError, match="a task is called 'base', as another row of the transfer is"):
        head_transfer_of(study, ll.RunStore(tmp_path))


def test_a_study_that_was_run(tmp_path):
    tasks = {"a": Kinship(n_train=4, **SMALL), "b": Kinship(n_train=4, **SMALL, seed=1)}
    study = ll.Study(
        "run", models=("tiny-llama",), tasks=tasks, methods={"lofit": QUICK}, heads=("own", "others"), k=(1,), n_train=(3,)
    )
    store = ll.RunStore(tmp_path)
    ll.run_study(study, store)
    result = head_transfer_of(study, store)
    assert (result.sources, result.targets) == (("a", "b", "base"), ("a", "b"))
    for done, run in runs(study, store).items():
        row = {"own": done.task, None: "base"}.get(done.heads, done.heads)
        assert result.matrix().loc[row, done.task] == run.evaluation.value
    assert len(result.cells) == 6
