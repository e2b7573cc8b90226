"""Figures: the numbers, labels and units in them."""

import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
import torch

from lofit_lens import plots
from lofit_lens.analysis import (
    DoseResponse,
    Mixture,
    OffsetAttribution,
    OffsetReading,
    Sweep,
    TransferTable,
    head_overlap,
    head_transfer,
)
from lofit_lens.analysis.reading import ReadToken
from lofit_lens.heads import Head, HeadScores
from lofit_lens.outcomes import Evaluation
from lofit_lens.plots import (
    cumulative_scores,
    dose_curves,
    head_heatmap,
    head_heatmaps,
    layer_histogram,
    mixture_curves,
    offset_tokens,
    overlap_matrix,
    shared_heads,
    sweep_curves,
    transfer_matrix,
)
from lofit_lens.side_effects import SideEffects

NAN = math.nan
SCORES = HeadScores(torch.tensor([[0.5, 2.0], [NAN, NAN], [1.0, 0.25]]), quantity="norm of the learned scaling")
OTHER = HeadScores(torch.tensor([[4.0, 0.0], [NAN, NAN], [0.5, 0.75]]), quantity="norm of the learned scaling")


def outlines(figure: go.Figure) -> list[tuple[str, float, float, float, float]]:
    return [(shape.xref, shape.x0, shape.x1, shape.y0, shape.y1) for shape in figure.layout.shapes]


def test_a_heat_map_has_a_row_for_each_layer_and_a_column_for_each_head():
    figure = head_heatmap(SCORES)
    [trace] = figure.data
    assert isinstance(trace, go.Heatmap)
    # Layers without attention stay blank.
    assert [list(row) for row in trace.z] == [[0.5, 2.0], [None, None], [1.0, 0.25]]


def test_a_heat_map_says_what_its_axes_and_colours_are():
    figure = head_heatmap(SCORES, title="Kinship")
    assert figure.layout.title.text == "Kinship"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("Head", "Layer")
    assert figure.data[0].coloraxis == "coloraxis"
    assert figure.layout.coloraxis.colorbar.title.text == "norm of the learned scaling; grey: no score"
    everywhere = HeadScores(torch.ones(2, 2), quantity="norm")
    assert head_heatmap(everywhere).layout.coloraxis.colorbar.title.text == "norm"


def test_layer_0_is_on_top_and_no_cell_is_cut_off():
    assert head_heatmap(SCORES).layout.yaxis.range == (2.5, -0.5)


def test_the_hover_text_names_the_head_its_rank_and_whether_it_is_selected():
    [trace] = head_heatmap(SCORES, selected=[(0, 1)]).data
    assert [list(row) for row in trace.text] == [
        ["L0H0<br>rank 3<br>0.5", "L0H1<br>rank 1 (selected)<br>2"],
        ["L1H0<br>no attention, or not scored", "L1H1<br>no attention, or not scored"],
        ["L2H0<br>rank 2<br>1", "L2H1<br>rank 4<br>0.25"],
    ]
    assert "%{text}" in trace.hovertemplate
    [trace] = head_heatmap(SCORES, heads_per_kv=2).data
    assert trace.text[2][1] == "L2H1, KV head 0<br>rank 4<br>0.25"


def test_scores_that_say_so_are_signed_even_if_none_is_negative():
    lost = HeadScores(torch.tensor([[0.5, 2.0], [NAN, NAN]]), "lost without the head", is_signed=True)
    colours = head_heatmap(lost).layout.coloraxis
    assert (colours.cmin, colours.cmax, colours.cmid) == (-2.0, 2.0, None)
    assert colours.colorscale == head_heatmap(dataclasses.replace(lost, values=-lost.values)).layout.coloraxis.colorscale
    assert head_heatmap(dataclasses.replace(lost, is_signed=False)).layout.coloraxis.cmin == 0.5
    nothing = dataclasses.replace(lost, values=torch.zeros(2, 2))
    assert (head_heatmap(nothing).layout.coloraxis.cmin, head_heatmap(nothing).layout.coloraxis.cmax) == (-1.0, 1.0)


def test_lines_part_the_heads_that_share_keys_and_values():
    scores = HeadScores(torch.rand(2, 6))
    edges = [shape.x0 for shape in head_heatmap(scores, heads_per_kv=2).layout.shapes]
    assert edges == [1.5, 3.5]
    both = head_heatmaps({"a": scores, "b": scores}, heads_per_kv=3)
    assert [(shape.xref, shape.x0) for shape in both.layout.shapes] == [("x", 2.5), ("x2", 2.5)]
    assert head_heatmap(scores).layout.shapes == ()
    known = dataclasses.replace(scores, n_key_value_heads=2)
    assert [shape.x0 for shape in head_heatmap(known).layout.shapes] == [2.5]
    assert "KV head 1" in head_heatmap(known).data[0].text[0][3]
    assert dataclasses.replace(scores, n_key_value_heads=4).heads_per_kv is None  # no such grouping
    with pytest.raises(ValueError, match="got heads_per_kv=4 for 6 heads; wanted one that divides them"):
        head_heatmap(scores, heads_per_kv=4)


def test_signed_scores_are_centred_at_0_and_others_are_not():
    signed = head_heatmaps({"a": SCORES, "b": HeadScores(-3 * SCORES.values, SCORES.quantity)}).layout.coloraxis
    assert (signed.cmin, signed.cmax) == (-6.0, 6.0)
    assert signed.colorscale[len(signed.colorscale) // 2][0] == 0.5
    plain = head_heatmap(SCORES).layout.coloraxis
    assert (plain.cmin, plain.cmax) == (0.25, 2.0)
    assert plain.colorscale != signed.colorscale


def test_a_layer_histogram_counts_heads():
    figure = layer_histogram({"a": [(0, 1), (0, 2), (3, 0)], "b": [(2, 2)]}, 4, title="Where")
    assert [list(trace.y) for trace in figure.data] == [[2, 0, 0, 1], [0, 0, 1, 0]]
    assert [trace.name for trace in figure.data] == ["a", "b"]
    assert figure.layout.xaxis2.title.text == "Layer"
    assert figure.layout.yaxis.title.text == "Heads"
    with pytest.raises(ValueError, match=r"got heads in the layers \[4\]; wanted layers 0 to 3"):
        layer_histogram({"a": [(4, 0)]}, 4)
    with pytest.raises(ValueError, match="no selection to draw"):
        layer_histogram({}, 4)


def test_cumulative_scores_end_at_the_whole():
    figure = cumulative_scores({"a": SCORES, "b": OTHER})
    a, b, alike = figure.data
    assert (list(alike.x), list(alike.y), alike.name) == ([0, 4], [0, 1], "all heads alike")
    # 2, 1, 0.5, 0.25 of 3.75.
    assert list(a.y) == pytest.approx([0, 2 / 3.75, 3 / 3.75, 3.5 / 3.75, 1])
    assert list(a.text) == ["none", "L0H1", "L2H0", "L0H0", "L2H1"]
    assert list(b.y) == pytest.approx([0, 4 / 5.25, 4.75 / 5.25, 1, 1])
    assert a.line.dash != b.line.dash
    assert figure.layout.yaxis.title.text == "share of all scores"
    with pytest.raises(ValueError, match="got scores of 'a' from -2 that sum to"):
        cumulative_scores({"a": HeadScores(-SCORES.values)})
    with pytest.raises(ValueError, match="no scores to draw"):
        cumulative_scores({})


def test_an_overlap_matrix_shows_values_and_what_the_nulls_say():
    a, b = (HeadScores(torch.rand(6, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    overlap = head_overlap({"one": [a, a], "two": [b]}, 6)
    figure = overlap_matrix(overlap, title="Heads in common")
    [trace] = figure.data
    value = overlap.matrix().loc["one", "two"]
    assert [list(row) for row in trace.z] == [[1.0, value], [value, None]]
    assert trace.text[0][1].startswith(f"{value:.2f}")
    assert trace.text[1][1] == ""
    assert f"p_layers {overlap.matrix('overlap', 'p_layers').loc['one', 'two']:.3g}" in trace.customdata[0][1]
    colours = figure.layout.coloraxis
    assert (colours.cmin, colours.cmax) == (0.0, 1.0)
    assert colours.colorbar.title.text == "shared heads (share of K)"
    correlation = overlap_matrix(overlap, "rank_correlation").layout.coloraxis
    assert (correlation.cmin, correlation.cmax) == (-1.0, 1.0)
    distance = overlap_matrix(overlap, "emd")
    assert distance.layout.coloraxis.cmax == overlap.matrix("emd").max(axis=None)
    assert distance.layout.coloraxis.reversescale
    assert "expected_layers -" in distance.data[0].customdata[0][1]


def test_alike_beyond_layers_is_marked():
    scores = HeadScores(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)))
    reversed_scores = HeadScores(1 - scores.values)
    figure = overlap_matrix(head_overlap({"a": [scores], "b": [scores], "c": [reversed_scores]}, 9))
    [trace] = figure.data
    assert trace.text[0][1] == "1.00*"
    assert trace.text[0][2] == "0.00"


def test_an_upset_figure_has_a_bar_for_each_combination():
    sets = {"a": [(0, 0), (1, 1), (2, 0)], "b": [(1, 1), (2, 0)], "c": [(3, 3)]}
    figure = shared_heads(sets, title="Shared")
    bars, dots, *lines = figure.data
    assert list(bars.y) == [2, 1, 1]
    assert bars.hovertext[0] == "a and b<br>L1H1, L2H0"
    assert len(dots.x) == 9
    assert [list(line.y) for line in lines] == [["a", "b"], ["a"], ["c"]]
    assert list(figure.layout.yaxis2.ticktext) == ["a (3)", "b (2)", "c (1)"]
    with pytest.raises(ValueError, match="got no heads to draw"):
        shared_heads({"a": []})


def test_selected_heads_are_outlined():
    assert outlines(head_heatmap(SCORES, selected=SCORES.top(2))) == [("x", 0.5, 1.5, -0.5, 0.5), ("x", -0.5, 0.5, 1.5, 2.5)]
    assert outlines(head_heatmap(SCORES)) == []


def test_selected_heads_may_be_an_iterator():
    figure = head_heatmap(SCORES, selected=(head for head in [(0, 1)]))
    assert len(outlines(figure)) == 1
    assert "(selected)" in figure.data[0].text[0][1]


def test_panels_side_by_side_share_one_colour_scale_and_the_layer_axis():
    figure = head_heatmaps({"kinship": SCORES, "truth": OTHER}, {"truth": [(2, 1)]}, title="Heads")
    assert [annotation.text for annotation in figure.layout.annotations] == ["kinship", "truth"]
    assert [trace.coloraxis for trace in figure.data] == ["coloraxis", "coloraxis"]
    assert [list(trace.z[0]) for trace in figure.data] == [[0.5, 2.0], [4.0, 0.0]]
    assert outlines(figure) == [("x2", 0.5, 1.5, 1.5, 2.5)]
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range == (2.5, -0.5)
    assert figure.layout.yaxis2.matches == "y"
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text) == ("Head", "Head")
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("Layer", None)


def test_ticks_are_whole_heads():
    wide = HeadScores(torch.rand(2, 32))
    assert figure_ticks(head_heatmap(wide)) == list(range(0, 32, 4))
    assert figure_ticks(head_heatmap(SCORES)) == [0, 1]


def figure_ticks(figure: go.Figure) -> list[int]:
    return list(figure.layout.xaxis.tickvals)


def test_scores_that_cannot_be_compared_are_not_drawn_on_one_scale():
    with pytest.raises(ValueError, match="differ in shape or quantity"):
        head_heatmaps({"a": SCORES, "b": HeadScores(torch.ones(3, 4), quantity=SCORES.quantity)})
    with pytest.raises(ValueError, match="probe accuracy"):
        head_heatmaps({"a": SCORES, "b": HeadScores(torch.ones(3, 2), quantity="probe accuracy")})


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no scores to draw"):
        head_heatmaps({})


@pytest.mark.parametrize("selected", [{"truht": [(0, 0)]}, {"truth": [(3, 0)]}, {"truth": [(0, 2)]}])
def test_a_selection_that_is_in_no_panel_is_refused(selected):
    with pytest.raises(ValueError, match=r"."):
        head_heatmaps({"truth": SCORES}, selected)


# Transfer

TABLE = TransferTable(
    {
        ("kinship", "kinship"): Evaluation("kinship", "test", "exact_match", {"exact_match": (1.0, 1.0, 0.0, 1.0)}),
        ("kinship", "truth"): Evaluation("truth", "test", "mc1", {"mc1": (1.0, 0.0)}),
        ("random", "kinship"): Evaluation("kinship", "test", "exact_match", {"exact_match": (0.0, 1.0, 0.0, 0.0)}),
        ("random", "truth"): Evaluation("truth", "test", "mc1", {"mc1": (1.0, 1.0)}),
    },
    sources=("kinship", "random"),
    targets=("kinship", "truth"),
)


def test_the_transfer_matrix_has_sources_as_rows_and_targets_as_columns():
    figure = transfer_matrix(TABLE)
    [trace] = figure.data
    assert [list(row) for row in trace.z] == [[0.75, 0.5], [0.25, 1.0]]
    assert (list(trace.y), list(trace.x)) == (["kinship", "random"], ["kinship", "truth"])
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


def test_the_transfer_matrix_says_what_its_axes_and_colours_are():
    layout = transfer_matrix(TABLE, title="Transfer").layout
    assert (layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text) == ("Transfer", "Task learned", "Heads of")
    assert list(layout.xaxis.ticktext) == ["kinship (exact match)", "truth (mc1)"]
    assert list(layout.xaxis.tickvals) == ["kinship", "truth"]
    assert layout.yaxis.autorange == "reversed", "the first source is on top"
    assert layout.coloraxis.colorbar.title.text == "metric (0 to 1)"


def test_each_cell_shows_its_value_and_interval():
    [trace] = transfer_matrix(TABLE).data
    low, high = TABLE.evaluations["random", "kinship"].interval()
    assert trace.text[1][0] == f"0.25<br>[{low:.2f}, {high:.2f}]"
    assert trace.texttemplate == "%{text}"
    assert [[list(cell) for cell in row] for row in trace.customdata] == [
        [["exact_match", 4], ["mc1", 2]],
        [["exact_match", 4], ["mc1", 2]],
    ]


def test_a_table_of_adapters_says_so():
    assert "heads of %{y}" in transfer_matrix(TABLE).data[0].hovertemplate
    figure = transfer_matrix(dataclasses.replace(TABLE, rows="adapter"))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("Task", "Adapter")
    assert "adapter %{y}" in figure.data[0].hovertemplate


# Transfer of heads


def twice(*scores: float, metric: str = "mc1") -> dict[int, Evaluation]:
    return dict.fromkeys((0, 1), Evaluation("truth", "test", metric, {metric: scores}))


LENT = head_transfer(
    {
        ("truth", "truth"): twice(*[1.0] * 7, 0.0),
        ("ioi", "truth"): twice(0.0, 0.0, 0.0, *[1.0] * 4, 0.0),
        ("base", "truth"): twice(*[0.0] * 7, 1.0),
        ("truth", "ioi"): twice(1.0, 0.0),
    },
    ("truth", "ioi", "base"),
    ("truth", "ioi"),
)


def test_a_head_transfer_shows_values_and_colours_them_relative_to_own_heads():
    figure = plots.head_transfer(LENT, title="Lent")
    [trace] = figure.data
    assert [list(row) for row in trace.text] == [["0.88", "0.50"], ["0.50*", ""], ["0.12", ""]]
    # ioi is not learned on its own heads: nothing to compare with.
    assert [[None if z is None else round(z, 2) for z in row] for row in trace.z] == [[100, None], [57.14, None], [14.29, None]]
    assert (list(trace.x), list(trace.y)) == (["truth", "ioi"], ["truth", "ioi", "base"])
    # As far as the furthest cell, but for the base model's.
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == pytest.approx((400 / 7, 1000 / 7))
    assert figure.layout.title.text == "Lent"


def test_a_head_transfer_says_what_its_axes_colours_and_marks_are():
    figure = plots.head_transfer(LENT)
    title, *note = figure.layout.xaxis.title.text.split("<br>")
    assert "Task learned (mc1)" in title
    assert " ".join(note) == f"{LENT.note} Outlined: own heads.".replace("<", "&lt;")
    assert figure.layout.yaxis.title.text == "Heads of"
    assert figure.layout.coloraxis.colorbar.title.text == "relative to own heads (%)"
    assert figure.layout.yaxis.autorange == "reversed", "the first source is on top"


def test_own_heads_are_outlined():
    assert sorted(outlines(plots.head_transfer(LENT))) == [(None, -0.5, 0.5, -0.5, 0.5), (None, 0.5, 1.5, 0.5, 1.5)]


def test_a_head_transfer_says_everything_on_hovering():
    [trace] = plots.head_transfer(LENT).data
    low, high = LENT.cells.loc[2, ["low", "high"]]
    assert trace.customdata[1][0].split("<br>") == [
        f"mc1 0.500 [{low:.3f}, {high:.3f}] (n = 8, 2 seeds)",
        "57 % of own heads [10, 104]",
        "difference from own heads -0.375 [-0.808, +0.058]",
        "p 0.040 (lower), 0.080 (two-sided), q 0.040 (lower)",
        f"detectable difference {LENT.matrix('detectable').loc['ioi', 'truth']:.3f}",
    ]
    assert trace.customdata[0][0].endswith("(n = 8, 2 seeds)<br>own heads")
    assert trace.customdata[0][1].endswith("<br>own heads are not there")
    assert "p - (lower), - (two-sided)" in trace.customdata[2][0]
    assert trace.customdata[1][1] == ""
    assert "%{customdata}" in trace.hovertemplate


def test_tiny_p_and_any_ratio_are_said_in_words():
    cells = {("a", "a"): twice(1.0, 0.0, 0.0, 0.0), ("b", "a"): twice(0.0, 0.0, 0.0, 0.0)}
    sure = {("a", "a"): twice(*[1.0] * 30), ("b", "a"): twice(*[0.0] * 29, 1.0)}
    [[_], [any_ratio]] = plots.head_transfer(head_transfer(cells, ("a", "b"), ("a",))).data[0].customdata
    assert "0 % of own heads [-, -]" in any_ratio
    [[_], [tiny]] = plots.head_transfer(head_transfer(sure, ("a", "b"), ("a",))).data[0].customdata
    assert "p &lt; 0.001 (lower)" in tiny


def test_colours_of_a_head_transfer_neither_blow_up_noise_nor_follow_one_cell():
    def bounds(other: dict[int, Evaluation]) -> tuple[float, float]:
        cells = {("a", "a"): twice(*[1.0] * 2, *[0.0] * 30), ("b", "a"): other}
        colours = plots.head_transfer(head_transfer(cells, ("a", "b"), ("a",))).layout.coloraxis
        return colours.cmin, colours.cmax

    assert bounds(twice(*[0.0] * 30, *[1.0] * 2)) == (90, 110)
    assert bounds(twice(*[1.0] * 32)) == (0, 200)


def test_metrics_that_differ_stand_beside_their_tasks():
    cells = {("a", "a"): twice(1.0, 0.0), ("b<", "b<"): twice(1.0, 0.0, metric="exact_match")}
    figure = plots.head_transfer(head_transfer(cells, ("a", "b<"), ("a", "b<")))
    assert list(figure.layout.xaxis.ticktext) == ["a (mc1)", "b&lt; (exact match)"]
    assert "Task learned</span>" in figure.layout.xaxis.title.text
    assert list(plots.head_transfer(LENT).layout.xaxis.ticktext) == ["truth", "ioi"]


# Doses


def mc1(*scores: float) -> Evaluation:
    return Evaluation("truth", "test", "mc1", {"mc1": scores})


RESPONSE = DoseResponse(
    (-1.0, 0.0, 1.0),
    (mc1(0.0, 0.0, 0.0, 1.0), mc1(0.0, 0.0, 1.0, 1.0), mc1(1.0, 0.0, 1.0, 1.0)),
    (
        SideEffects((2.5, 3.5), (2.0, 3.0), (0.25, 0.75), (9, 9)),
        SideEffects((2.0, 3.0), (2.0, 3.0), (0.0, 0.0), (9, 9)),
        SideEffects((2.25, 3.75), (2.0, 3.0), (0.5, 0.25), (9, 9)),
    ),
)


def test_dose_curves_show_the_metric_above_and_what_text_pays_below():
    figure = dose_curves(RESPONSE)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [(trace.name, trace.yaxis) for trace in lines] == [
        ("mc1", "y"),
        ("rise in cross-entropy", "y2"),
        ("KL from the base model", "y2"),
    ]
    assert all(list(trace.x) == [-1, 0, 1] for trace in lines)
    assert [list(trace.y) for trace in lines] == [[0.25, 0.5, 0.75], [0.5, 0, 0.5], [0.5, 0, 0.375]]


def test_bands_of_dose_curves_are_the_intervals():
    figure = dose_curves(RESPONSE)
    bands = [trace for trace in figure.data if trace.mode == "lines"]
    lows, highs = zip(*[evaluation.interval() for evaluation in RESPONSE.evaluations], strict=True)
    assert list(bands[0].x) == [-1, 0, 1, 1, 0, -1]
    assert list(bands[0].y) == [*highs, *lows[::-1]]
    kl = [found.summary().loc["kl", ["low", "high"]].tolist() for found in RESPONSE.side_effects]
    assert list(bands[2].y) == [high for _, high in kl] + [low for low, _ in kl][::-1]
    assert {trace.fill for trace in bands} == {"toself"}
    assert [list(row) for row in figure.data[1].customdata] == [list(pair) for pair in zip(lows, highs, strict=True)]


def test_dose_curves_say_what_their_axes_are_and_mark_the_base_model_and_the_edit_as_fitted():
    layout = dose_curves(RESPONSE, title="Doses").layout
    assert (layout.title.text, layout.yaxis.title.text, layout.yaxis2.title.text) == ("Doses", "mc1 (0 to 1)", "nats a token")
    assert (layout.xaxis.title.text, layout.xaxis2.title.text) == (None, "Dose (1 = the edit as fitted)")
    assert layout.xaxis.matches == "x2"
    assert [(line.x0, line.x1, line.xref) for line in layout.shapes] == [
        *[(0, 0, "x"), (0, 0, "x2")],
        *[(1, 1, "x"), (1, 1, "x2")],
    ]
    assert [(note.x, note.text) for note in layout.annotations] == [(0, "base model"), (1, "as fitted")]


def test_dose_curves_say_everything_on_hovering():
    templates = [trace.hovertemplate for trace in dose_curves(RESPONSE).data if trace.mode == "lines+markers"]
    assert templates[0].startswith("dose %{x}<br>mc1 %{y:.3f} (n = 4)<br>[%{customdata[0]:.3f}")
    assert templates[2].startswith("dose %{x}<br>KL from the base model %{y:.3f} nats a token (n = 2 texts)<br>[")


def test_without_texts_there_is_one_panel():
    figure = dose_curves(DoseResponse(RESPONSE.doses, RESPONSE.evaluations))
    assert {trace.yaxis for trace in figure.data} == {"y"}
    assert "yaxis2" not in figure.layout
    assert figure.layout.xaxis.title.text == "Dose (1 = the edit as fitted)"


# Sweeps

LOFIT = Sweep("training examples", {20: (mc1(0.0, 1.0, 0.0, 0.0), mc1(0.0, 1.0, 1.0, 1.0)), 300: (mc1(1.0, 1.0, 0.0, 1.0),)})
ITI = Sweep("training examples", {20: (mc1(0.0, 0.0, 0.0, 0.0),), 100: (mc1(0.0, 0.0, 0.0, 1.0),)})


def test_sweep_curves_show_the_mean_of_runs_with_its_interval_and_every_run():
    means, runs = sweep_curves({"LoFiT": LOFIT}).data
    assert (means.mode, list(means.x), list(means.y)) == ("lines+markers", [20, 300], [0.5, 0.75])
    low, high = LOFIT.mean(20).interval()
    assert (means.error_y.array[0], means.error_y.arrayminus[0]) == (high - 0.5, 0.5 - low)
    assert [list(row)[:3] for row in means.customdata] == [[20, low, high], [300, *LOFIT.mean(300).interval()]]
    assert [list(row)[3:] for row in means.customdata] == [[2, 4], [1, 4]]
    assert (runs.mode, list(runs.x), list(runs.y)) == ("markers", [20, 20, 300], [0.25, 0.75, 0.75])
    assert [list(row) for row in runs.customdata] == [[20, 0], [20, 1], [300, 0]]
    assert "training examples %{customdata[0]}" in means.hovertemplate
    assert "run %{customdata[1]} %{y" in runs.hovertemplate
    # A run at the mean is seen around it.
    assert runs.marker.size > means.marker.size
    assert runs.marker.symbol == f"{means.marker.symbol}-open"
    assert (means.legendgroup, runs.legendgroup, runs.showlegend) == ("LoFiT", "LoFiT", False)


def test_sweep_curves_say_what_their_axes_are():
    layout = sweep_curves({"LoFiT": LOFIT, "ITI": ITI}, title="Data").layout
    assert (layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text) == (
        "Data",
        "training examples",
        "mc1 (0 to 1)",
    )
    assert (list(layout.xaxis.tickvals), list(layout.xaxis.ticktext)) == ([20, 100, 300], ["20", "100", "300"])


@pytest.mark.parametrize(("xs", "kind"), [((1, 10), "linear"), ((1, 11), "log"), ((0, 11), "linear"), ((20,), "linear")])
def test_x_is_logarithmic_where_it_spans_more_than_a_factor_of_ten(xs, kind):
    figure = sweep_curves({"LoFiT": Sweep("heads (%)", {x: (mc1(0.0, 1.0),) for x in xs})})
    assert figure.layout.xaxis.type == kind


def test_lines_at_one_x_stand_beside_each_other():
    logarithmic = [trace.x[0] for trace in sweep_curves({"a": LOFIT, "b": LOFIT, "c": LOFIT}).data[::2]]
    assert logarithmic == pytest.approx([20 / 15**0.015, 20, 20 * 15**0.015])
    linear = [trace.x[0] for trace in sweep_curves({"a": ITI, "b": ITI}).data[::2]]
    assert linear == pytest.approx([20 - 80 * 0.0075, 20 + 80 * 0.0075])


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        ({}, r"got sweeps of these quantities and metrics: \[\]"),
        ({"a": LOFIT, "b": Sweep("heads (%)", LOFIT.evaluations)}, r"\('heads \(%\)', 'mc1'\), \('training examples', 'mc1'\)"),
        ({str(i): LOFIT for i in range(7)}, "got 7 lines to draw, .* wanted at most 6"),
    ],
)
def test_sweeps_that_one_figure_cannot_show_are_refused(sweeps, message):
    with pytest.raises(ValueError, match=message):
        sweep_curves(sweeps)


# Mixtures

WEIGHTS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, -0.5))
SHARES = dict(zip(WEIGHTS, (0.0, 0.25, 0.75, 0.5, 1.0, 0.5), strict=True))
MIXTURE = Mixture(
    WEIGHTS,
    ("truth", "kinship"),
    {
        (weights, task): Evaluation(task, "test", metric, {metric: tuple(float(i < n) for i in range(4))})
        for weights, share in SHARES.items()
        for task, metric, n in (("truth", "mc1", 4 * share), ("kinship", "exact_match", 4 - 4 * share))
    },
)


def test_mixture_curves_lead_from_a_to_b_and_show_other_sums_beside():
    figure = mixture_curves(MIXTURE)
    assert [(trace.name, trace.mode, trace.showlegend) for trace in figure.data] == [
        ("truth (mc1)", "lines+markers", True),
        ("truth (mc1)", "markers", False),
        ("kinship (exact match)", "lines+markers", True),
        ("kinship (exact match)", "markers", False),
    ]
    assert [list(trace.y) for trace in figure.data] == [[0.75, 0.5, 0.25], [0, 1, 0.5], [0.25, 0.5, 0.75], [1, 0, 0.5]]
    # Two tasks stand beside each other.
    assert [list(trace.x) for trace in figure.data[:2]] == [[-0.015, 0.485, 0.985], pytest.approx([1.435, 1.885, 2.335])]
    assert list(figure.data[2].x) == [0.015, 0.515, 1.015]


def test_mixture_curves_say_what_their_axes_are():
    layout = mixture_curves(MIXTURE, names=("kinship", "truth"), title="Both").layout
    assert (layout.title.text, layout.xaxis.title.text) == ("Both", "Weights: kinship (upper row), truth (lower row)")
    assert layout.yaxis.title.text == "metric (0 to 1)"
    assert list(layout.xaxis.tickvals) == pytest.approx([0, 0.5, 1, 1.45, 1.9, 2.35])
    ticks = ["1<br>0", "0.5<br>0.5", "0<br>1", "0<br>0<br>(base)", "1<br>1", "2<br>-0.5"]
    assert list(layout.xaxis.ticktext) == ticks
    assert [(line.x0, line.x1) for line in layout.shapes] == [(1.225, 1.225)]


def test_mixture_curves_have_intervals_and_say_everything_on_hovering():
    trace = mixture_curves(MIXTURE).data[0]
    low, high = MIXTURE.evaluations[(1.0, 0.0), "truth"].interval()
    assert (trace.error_y.array[0], trace.error_y.arrayminus[0]) == (high - 0.75, 0.75 - low)
    assert list(trace.customdata[0]) == ["a", low, high, 4]
    assert [row[0] for row in trace.customdata] == ["a", "0.5 a + 0.5 b", "b"]
    assert trace.hovertemplate.startswith("truth under %{customdata[0]}<br>mc1 %{y:.3f} (n = %{customdata[3]})<br>[")


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 1.0)])
def test_a_line_or_other_sums_alone_are_drawn_without_a_border(weights):
    figure = mixture_curves(dataclasses.replace(MIXTURE, weights=(weights,)))
    assert [list(trace.y) for trace in figure.data] == [[SHARES[weights]], [1 - SHARES[weights]]]
    assert [trace.showlegend for trace in figure.data] == [True, True]
    assert figure.layout.shapes == ()


# What offsets say

TOKENS = {Head(12, 5): ("\u2423cousin", "<bos>", "$"), Head(3, 0): ("\u2423particularly", "&lt;", r"\n")}
READING = OffsetReading(
    tuple(
        ReadToken(head, "with norm", side, rank, token if side == "top" else "no", sign * (4.0 - rank), 0.5**rank)
        for head, tokens in TOKENS.items()
        for side, sign in (("top", 1), ("bottom", -1))
        for rank, token in enumerate(tokens, start=1)
    )
)


def test_the_tokens_of_offsets_have_heads_as_rows_and_ranks_as_columns():
    [trace] = offset_tokens(READING, k=3).data
    assert (list(trace.y), list(trace.x)) == (["L12H5", "L3H0"], [1, 2, 3])
    assert [list(row) for row in trace.z] == [[0.5, 0.25, 0.125]] * 2
    assert trace.texttemplate == "%{text}"


def test_fewer_columns_and_the_other_side_can_be_drawn_but_not_what_was_not_read():
    [trace] = offset_tokens(READING, k=2, side="bottom").data
    assert [list(row) for row in trace.text] == [["no", "no"]] * 2
    assert [[cell[1] for cell in row] for row in trace.customdata] == [[-3.0, -2.0]] * 2
    with pytest.raises(ValueError, match="k = 10, of which 3 tokens were read"):
        offset_tokens(READING)
    with pytest.raises(ValueError, match="got lens 'without norm'"):
        offset_tokens(READING, k=3, lens="without norm")


def test_tokens_are_no_markup_and_long_ones_are_cut_in_the_cell_but_not_in_the_hover_text():
    [trace] = offset_tokens(READING, k=3).data
    assert [list(row) for row in trace.text] == [
        ["\u2423cousin", "&lt;bos&gt;", "&#36;"],
        ["\u2423particu\u2026", "&amp;lt;", r"\n"],
    ]
    assert [list(cell) for cell in trace.customdata[1]] == [["\u2423particularly", 3.0], ["&amp;lt;", 2.0], [r"\n", 1.0]]
    for shown in ("%{y}", "rank %{x}", "%{customdata[0]}", "logit %{customdata[1]", "probability %{z"):
        assert shown in trace.hovertemplate


def test_the_tokens_figure_says_what_its_axes_and_colours_are():
    figure = offset_tokens(READING, k=3, title="CLUTRR")
    layout = figure.layout
    assert (layout.title.text, layout.yaxis.title.text) == ("CLUTRR", "Head")
    assert layout.xaxis.title.text == "Rank, likeliest first (logit lens, with the final norm)"
    bare = OffsetReading(tuple(read._replace(lens="without norm") for read in READING.tokens))
    other = offset_tokens(bare, k=3, lens="without norm", side="bottom").layout
    assert other.xaxis.title.text == "Rank, unlikeliest first (logit lens, without the final norm)"
    assert layout.yaxis.autorange == "reversed", "the first head is on top"
    assert layout.coloraxis.colorbar.title.text == "probability (0 to 1)"
    assert (layout.coloraxis.cmin, layout.coloraxis.cmax) == (0, 0.5)


# What offsets add

ATTRIBUTION = OffsetAttribution(
    (Head(3, 0), Head(12, 5), Head(4, 4)), torch.tensor([[0.1, 0.3], [-0.5, -0.7], [0.25, 0.25]]), "vocabulary"
)


def test_an_attribution_has_a_dot_and_an_interval_for_each_head_the_largest_on_top():
    figure = plots.offset_attribution(ATTRIBUTION, title="What they add")
    [trace] = figure.data
    assert list(trace.y) == ["L4H4", "L3H0", "L12H5"]
    assert list(trace.x) == pytest.approx([0.25, 0.2, -0.6])
    frame = ATTRIBUTION.to_frame().set_index("head").loc[list(trace.y)]
    assert list(np.add(trace.x, trace.error_x.array)) == pytest.approx(list(frame["high"]))
    assert list(np.subtract(trace.x, trace.error_x.arrayminus)) == pytest.approx(list(frame["low"]))
    assert figure.layout.yaxis.range == (2.5, -0.5)
    assert figure.layout.title.text == "What they add"
    assert figure.layout.xaxis.title.text == (
        "Added directly to the right answer's logit,<br>less that of the vocabulary (n = 2)"
    )
    assert [(line.x0, line.x1) for line in figure.layout.shapes] == [(0, 0)]


def test_of_many_heads_an_attribution_shows_those_furthest_from_0():
    figure = plots.offset_attribution(ATTRIBUTION, k=2)
    assert list(figure.data[0].y) == ["L4H4", "L12H5"]
    assert figure.layout.yaxis.title.text == "Head (2 of 3, furthest from 0)"
    with pytest.raises(ValueError, match="got k=0; wanted at least 1 head"):
        plots.offset_attribution(ATTRIBUTION, k=0)


# In a paper

DRAWN = {
    "head map": lambda columns: head_heatmaps({"a": SCORES, "b": OTHER}, title="Title", columns=columns),
    "layers": lambda columns: layer_histogram({"a": [(0, 1)]}, 4, title="Title", columns=columns),
    "cumulative": lambda columns: cumulative_scores({"a": SCORES}, title="Title", columns=columns),
    "overlap": lambda columns: overlap_matrix(head_overlap({"a": [SCORES], "b": [OTHER]}, 2), title="Title", columns=columns),
    "shared": lambda columns: shared_heads({"a": [(0, 1)]}, title="Title", columns=columns),
    "transfer": lambda columns: transfer_matrix(TABLE, title="Title", columns=columns),
    "head transfer": lambda columns: plots.head_transfer(LENT, title="Title", columns=columns),
    "doses": lambda columns: dose_curves(RESPONSE, title="Title", columns=columns),
    "sweep": lambda columns: sweep_curves({"a": LOFIT}, title="Title", columns=columns),
    "mixture": lambda columns: mixture_curves(MIXTURE, title="Title", columns=columns),
    "tokens": lambda columns: offset_tokens(READING, k=3, title="Title", columns=columns),
    "attribution": lambda columns: plots.offset_attribution(ATTRIBUTION, title="Title", columns=columns),
}


def sizes_of_letters(node: object, key: str = "") -> Iterator[float]:
    """Wherever a figure says them; its template's, if it does not."""
    if isinstance(node, dict):
        if "font" in key and "size" in node:
            yield node["size"]
        for name, inner in node.items():
            yield from sizes_of_letters(inner, name)
    elif isinstance(node, list):
        for inner in node:
            yield from sizes_of_letters(inner, key)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_in_a_paper_is_as_wide_as_its_columns_and_its_letters_can_be_read(name, columns):
    figure = DRAWN[name](columns)
    # 3.25 and 6.75 inches of 96 pixels.
    assert figure.layout.width == {1: 312, 2: 648}[columns]
    # 6.75 to 8.25 points of 72 to the inch.
    sizes = set(sizes_of_letters(figure.to_plotly_json()))
    assert min(sizes) >= 9
    assert max(sizes) <= 11
    # Neither a colour bar nor a legend takes width from it.
    assert figure.layout.coloraxis.colorbar.orientation in (None, "h")
    assert figure.layout.legend.orientation in (None, "h")


@pytest.mark.parametrize("name", DRAWN)
def test_the_numbers_are_the_same_on_a_screen_and_in_a_paper(name):
    paper, screen = DRAWN[name](1), DRAWN[name](None)
    numbers = [[[trace.to_plotly_json().get(axis) for axis in "xyz"] for trace in drawn.data] for drawn in (paper, screen)]
    assert str(numbers[0]) == str(numbers[1])
    assert (paper.layout.title.text, screen.layout.title.text) == ("Title", "Title")


@pytest.mark.parametrize("name", DRAWN)
def test_other_numbers_of_columns_are_refused(name):
    with pytest.raises(ValueError, match=r"got columns=3; wanted one of \[1, 2\], or None for a screen"):
        DRAWN[name](3)


def test_head_maps_stand_below_each_other_where_a_column_has_no_room_for_them():
    def rows(n_heads: int, columns: int) -> int:
        panel = HeadScores(torch.rand(4, n_heads))
        figure = head_heatmaps({"a": panel, "b": panel, "c": panel}, columns=columns)
        return len({axis.domain for axis in figure.select_yaxes()})

    assert (rows(9, 1), rows(16, 1), rows(32, 1), rows(32, 2)) == (1, 2, 3, 1)


def test_names_of_lower_head_maps_do_not_run_into_ticks_of_upper_ones():
    panel = HeadScores(torch.rand(32, 32))
    layout = head_heatmaps({"a": panel, "b": panel}, columns=1).layout
    within = layout.height - layout.margin.t - layout.margin.b
    gap = (layout.yaxis.domain[0] - layout.yaxis2.domain[1]) * within
    # A tick of 3 pixels, and two rows of letters of 10 with some room for what hangs below their line.
    assert gap >= 3 + 2 * 1.5 * 10


def test_ticks_of_heads_do_not_run_into_each_other_in_a_column():
    panel = HeadScores(torch.rand(4, 9))
    figure = head_heatmaps({"a": panel, "b": panel, "c": panel}, columns=1)
    # Nine heads in some 80 pixels.
    assert figure_ticks(figure) == [0, 3, 6]


def test_a_colour_bar_in_a_paper_has_its_title_above_it():
    figure = overlap_matrix(head_overlap({"a": [SCORES], "b": [OTHER]}, 2), columns=1)
    [title] = figure.layout.annotations
    bar = figure.layout.coloraxis.colorbar
    assert title.text == "shared heads (share of K)"
    # In pixels from the figure's upper edge: the bar begins below the title, and ends, with its ticks, above the axes.
    begins, axes = (1 - bar.y) * figure.layout.height, figure.layout.margin.t
    assert axes - title.yshift <= begins < axes - bar.thickness - 20


def test_intervals_of_a_transfer_matrix_are_left_out_of_cells_that_are_too_narrow():
    many = tuple("abcdefgh")
    cells = {(a, b): mc1(1.0, 0.0) for a in many for b in many}
    wide = TransferTable(cells, many, many)
    assert transfer_matrix(wide, columns=1).data[0].texttemplate == "%{z:.2f}"
    assert transfer_matrix(wide, columns=2).data[0].texttemplate == "%{text}"
    assert transfer_matrix(wide).data[0].texttemplate == "%{text}"


def test_tokens_are_cut_to_the_cells_of_a_column():
    def token(k: int, columns: int | None) -> str:
        return offset_tokens(READING, k=k, columns=columns).data[0].text[1][0]

    assert token(2, 1) == "\u2423particularly"
    assert len(token(3, 1)) == 13
    assert token(3, None) == "\u2423particu\u2026"


# The look

FIGURES = [
    head_heatmap(SCORES),
    transfer_matrix(TABLE),
    dose_curves(RESPONSE),
    sweep_curves({"LoFiT": LOFIT}),
    mixture_curves(MIXTURE),
]


@pytest.mark.parametrize("figure", [dose_curves(RESPONSE), sweep_curves({"a": LOFIT, "b": ITI}), mixture_curves(MIXTURE)])
def test_lines_differ_in_colour_dash_and_marker(figure):
    looks = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}.values()
    assert len(looks) > 1
    for of in (lambda trace: trace.line.color, lambda trace: trace.line.dash, lambda trace: trace.marker.symbol):
        assert len(set(map(of, looks))) == len(looks)
    assert figure.layout.width <= 420, "one column of a paper"


def test_figures_carry_their_own_template_and_leave_the_global_one_alone():
    before = plotly.io.templates.default
    for figure in (*FIGURES, offset_tokens(READING, k=3)):
        assert figure.layout.template.layout.plot_bgcolor == "white"
    assert plotly.io.templates.default == before


def test_figures_are_plain_json():
    stored = json.loads(head_heatmap(SCORES, selected=[(0, 1)]).to_json())
    assert stored["data"][0]["z"] == [[0.5, 2.0], [None, None], [1.0, 0.25]]
    assert json.loads(transfer_matrix(TABLE).to_json())["data"][0]["z"] == [[0.75, 0.5], [0.25, 1.0]]
    assert json.loads(dose_curves(RESPONSE).to_json())["data"][1]["y"] == [0.25, 0.5, 0.75]
    assert json.loads(sweep_curves({"LoFiT": LOFIT}).to_json())["data"][0]["y"] == [0.5, 0.75]
    assert json.loads(mixture_curves(MIXTURE).to_json())["data"][0]["y"] == [0.75, 0.5, 0.25]

    assert json.loads(offset_tokens(READING, k=2).to_json())["data"][0]["z"] == [[0.5, 0.25], [0.5, 0.25]]
