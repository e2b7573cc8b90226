"""Figures: the numbers, labels and units in them."""

import json
import math

import plotly.graph_objects as go
import plotly.io
import pytest
import torch

from lofit_lens.analysis import TransferTable
from lofit_lens.heads import HeadScores
from lofit_lens.outcomes import Evaluation
from lofit_lens.plots import head_heatmap, head_heatmaps, transfer_matrix

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
    assert figure.layout.coloraxis.colorbar.title.text == "norm of the learned scaling"


def test_layer_0_is_on_top_and_no_cell_is_cut_off():
    assert head_heatmap(SCORES).layout.yaxis.range == (2.5, -0.5)


def test_the_hover_text_names_the_head_its_rank_and_whether_it_is_selected():
    [trace] = head_heatmap(SCORES, selected=[(0, 1)]).data
    assert [list(row) for row in trace.text] == [
        ["L0H0<br>rank 3", "L0H1<br>rank 1 (selected)"],
        ["L1H0<br>rank -", "L1H1<br>rank -"],
        ["L2H0<br>rank 2", "L2H1<br>rank 4"],
    ]
    assert "%{text}" in trace.hovertemplate
    assert "%{z" in trace.hovertemplate


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
    [trace] = transfer_matrix(TABLE).data
    assert [list(row) for row in trace.z] == [[0.75, 0.5], [0.25, 1.0]]
    assert (list(trace.y), list(trace.x)) == (["kinship", "random"], ["kinship", "truth"])
    assert (trace.zmin, trace.zmax) == (0, 1)


def test_the_transfer_matrix_says_what_its_axes_and_colours_are():
    layout = transfer_matrix(TABLE, title="Transfer").layout
    assert (layout.title.text, layout.xaxis.title.text, layout.yaxis.title.text) == ("Transfer", "Task learned", "Heads of")
    assert list(layout.xaxis.ticktext) == ["kinship (exact_match)", "truth (mc1)"]
    assert list(layout.xaxis.tickvals) == ["kinship", "truth"]
    assert layout.yaxis.autorange == "reversed", "the first source is on top"
    assert transfer_matrix(TABLE).data[0].colorbar.title.text == "metric (0 to 1)"


def test_each_cell_shows_its_value_and_interval():
    [trace] = transfer_matrix(TABLE).data
    low, high = TABLE.evaluations["random", "kinship"].interval()
    assert trace.text[1][0] == f"0.25<br>[{low:.2f}, {high:.2f}]"
    assert trace.texttemplate == "%{text}"
    assert [[list(cell) for cell in row] for row in trace.customdata] == [
        [["exact_match", 4], ["mc1", 2]],
        [["exact_match", 4], ["mc1", 2]],
    ]


# The look


def test_figures_carry_their_own_template_and_leave_the_global_one_alone():
    before = plotly.io.templates.default
    for figure in (head_heatmap(SCORES), transfer_matrix(TABLE)):
        assert figure.layout.template.layout.plot_bgcolor == "white"
    assert plotly.io.templates.default == before


def test_figures_are_plain_json():
    stored = json.loads(head_heatmap(SCORES, selected=[(0, 1)]).to_json())
    assert stored["data"][0]["z"] == [[0.5, 2.0], [None, None], [1.0, 0.25]]
    assert json.loads(transfer_matrix(TABLE).to_json())["data"][0]["z"] == [[0.75, 0.5], [0.25, 1.0]]
