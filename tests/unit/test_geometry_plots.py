"""Figures of offsets: the numbers, labels and units in them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lofit_lens.analysis import OffsetGeometry, OffsetPlane, cosine_null
from lofit_lens.heads import Head
from lofit_lens.plots import cosine_distribution, offset_plane
from lofit_lens.probes import LabelledAnswers

NAN = float("nan")
GEOMETRY = OffsetGeometry(
    heads=(Head(0, 1), Head(2, 3), Head(1, 0)),
    directions=("probe", "a <b> c"),
    cosines=torch.tensor(
        [
            [[0.99, NAN], [-0.01, 0.5], [0.26, -0.5]],
            [[0.1, NAN], [0.2, 0.3], [0.3, -1.0]],
            [[0.0, NAN], [0.0, 0.0], [0.0, 0.0]],
        ],
        dtype=torch.float64,
    ),
    d_head=16,
    lengths=torch.tensor([1.0, 2.0, 3.0]),
    effective_alphas=torch.tensor([4.0, 5.0, 6.0]),
    mass_mean_alphas=torch.tensor([-1.0, 0.0, 1.0]),
)
PLANE = OffsetPlane(
    Head(2, 3),
    direction="mass-mean",
    alpha=15.0,
    labelled=LabelledAnswers(
        ("Is 1 < 2?\nA:", "x" * 100, "Q"), (" <Yes>", " no & never", " maybe"), (True, False, True), (0, 1, 1), ("x",) * 3
    ),
    points=torch.tensor([[1.0, 2.0], [-3.0, 0.5], [2.0, -2.5]]),
    offset=torch.tensor([-0.5, 1.5]),
    iti=torch.tensor([6.0, 0.0]),
    variance_share=0.126,
)


def traces_of(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_each_direction_has_a_panel_with_its_heads_and_what_chance_says():
    figure = cosine_distribution(GEOMETRY)
    rugs = traces_of(figure, "each head")
    assert [list(rug.x) for rug in rugs] == [[0.99, -0.01, 0.26], [0.5, -0.5]]
    assert [rug.xaxis for rug in rugs] == ["x", "x2"]
    densities = traces_of(figure, "chance (dotted: 95% of it)")
    assert len(densities) == 2
    for density in densities:
        np.testing.assert_allclose(density.y, cosine_null(16).pdf(density.x))
        assert np.trapezoid(density.y, density.x) == pytest.approx(1, abs=1e-4)
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]


def test_histograms_are_densities_as_chance_is_and_few_heads_have_none():
    cosines = torch.full((3, 12, 2), NAN, dtype=torch.float64)
    cosines[:, :, 1] = torch.tensor([0.99] * 6 + [-0.01] * 3 + [0.26] * 3, dtype=torch.float64)
    cosines[:, :9, 0] = 0.5
    heads = tuple(Head(0, i) for i in range(12))
    geometry = OffsetGeometry(heads, ("few", "many"), cosines, 16, *torch.ones(3, 12))
    figure = cosine_distribution(geometry)
    [bars] = traces_of(figure, "heads, histogram")
    assert (bars.xaxis, bars.showlegend) == ("x2", True)
    # A quarter of the heads, or half of them, over a width of 0.05.
    assert {round(x, 3): round(y, 3) for x, y in zip(bars.x, bars.y, strict=True) if y} == {-0.025: 5, 0.275: 5, 0.975: 10}
    assert [count for count in bars.customdata if count] == [3, 3, 6]
    # A bar of few heads would be 20 high, on every panel's axis.
    assert figure.layout.yaxis.range[1] == pytest.approx(1.05 * 10)


def test_panels_say_how_many_heads_are_outside_chance():
    """c sqrt(15 / (1 - c^2)) is Student's t of 15 degrees: within 2.131 in 95 %, and c within 2.131 / sqrt(2.131^2 + 15)."""
    figure = cosine_distribution(GEOMETRY)
    bound = cosine_null(16).ppf(0.975)
    assert bound == pytest.approx(0.4821, abs=1e-4)
    assert [annotation.text for annotation in figure.layout.annotations] == [
        "probe: 1 of 3 heads outside (0.15 by chance)",
        "a &lt;b&gt; c: 2 of 2 heads outside (0.1 by chance)",
    ]
    assert [(line.xref, line.x0, line.x1) for line in figure.layout.shapes] == [
        ("x", -bound, -bound),
        ("x", bound, bound),
        ("x2", -bound, -bound),
        ("x2", bound, bound),
    ]


def test_a_distribution_says_what_its_axes_are_and_hovering_names_the_head():
    figure = cosine_distribution(GEOMETRY, "residual", title="Truth")
    assert figure.layout.title.text == "Truth"
    title = "cosine of the offset with the direction"
    assert cosine_distribution(GEOMETRY).layout.xaxis2.title.text == f"{title} (z)"
    # Chance is exact for offsets that are uniform in z, and these are stretched.
    assert figure.layout.xaxis2.title.text == f"{title} (residual)<br>chance: uniform in this space, not in z"
    assert figure.layout.xaxis.title.text is None
    # Of the panel in the middle, for all of them.
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("density (1 / cosine)", None)
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range == (-1, 1)
    highest = max(height for trace in figure.data for height in trace.y)
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    assert figure.layout.yaxis.range[1] > highest
    assert figure.layout.yaxis2.matches == "y"
    (rug, _) = traces_of(figure, "each head")
    assert list(rug.x) == [0.1, 0.2, 0.3]
    label, p, alpha = rug.customdata[1]
    assert (label, alpha) == ("L2H3", 5.0)
    assert p == pytest.approx(2 * cosine_null(16).sf(0.2))
    assert "%{customdata[0]}" in rug.hovertemplate
    assert "standard deviations" in rug.hovertemplate
    assert all(trace.hovertemplate for trace in figure.data)


def test_directions_can_be_chosen_and_put_in_order():
    figure = cosine_distribution(GEOMETRY, directions=["a <b> c", "probe"])
    assert [len(rug.x) for rug in traces_of(figure, "each head")] == [2, 3]
    assert len(traces_of(cosine_distribution(GEOMETRY, directions=["probe"]), "each head")) == 1


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="got space 'resid'; wanted one of z, residual, whitened"):
        cosine_distribution(GEOMETRY, "resid")
    for directions in ([], ["probe", "prob"]):
        with pytest.raises(ValueError, match=r"wanted some that heads have cosines with: \['a <b> c', 'probe'\]"):
            cosine_distribution(GEOMETRY, directions=directions)


def answers_of(figure):
    return [trace for trace in figure.data if " answers (n = " in (trace.name or "")]


def arrows_of(figure):
    """Lines, which the legend names, and the heads of arrows behind each."""
    return figure.data[-4::2], figure.data[-3::2]


def test_a_plane_has_right_and_wrong_answers_the_rarer_ones_on_top():
    right, wrong = answers_of(offset_plane(PLANE))
    assert (list(right.x), list(right.y)) == ([1, 2], [2, -2.5])
    assert (list(wrong.x), list(wrong.y)) == ([-3], [0.5])
    assert [right.name, wrong.name] == ["right answers (n = 2)", "wrong answers (n = 1)"]
    turned = replace(PLANE, labelled=replace(PLANE.labelled, is_right=(False, True, False)))
    assert [trace.name for trace in answers_of(offset_plane(turned))] == ["wrong answers (n = 2)", "right answers (n = 1)"]
    # Told apart without colour too.
    assert right.marker.symbol != wrong.marker.symbol
    assert right.marker.color != wrong.marker.color


def test_above_a_plane_both_kinds_of_answers_lie_along_iti_as_densities():
    figure = offset_plane(PLANE)
    above = [trace for trace in figure.data if trace.yaxis == "y" and trace.fill == "tozeroy"]
    assert [trace.name for trace in above] == ["right answers", "wrong answers"]
    assert [np.trapezoid(trace.y, trace.x) for trace in above] == pytest.approx([1, 1])
    assert (min(above[1].x), max(above[1].x)) == (-3, 2)


def test_arrows_point_where_edits_go_and_say_how_long_they_are():
    figure = offset_plane(PLANE)
    lines, heads = arrows_of(figure)
    assert [line.name for line in lines] == ["ITI, mass-mean, alpha = 15: 6 long", "learned offset: 1.6 long"]
    ends = [(head.x[1], head.y[1]) for head in heads]
    # Both as long as 0.4 of the answers' extent of 5, however long they are.
    assert ends[0] == pytest.approx((2, 0))
    assert ends[1] == pytest.approx((-2 / 10**0.5, 6 / 10**0.5))
    assert [line.showlegend for line in lines] == [None, None]
    assert [(head.showlegend, head.marker.symbol[1]) for head in heads] == [(False, "arrow"), (False, "arrow")]
    assert "to (-0.5, 1.5) from the mean of all answers, in units of z" in lines[1].hovertemplate
    low, high = figure.layout.yaxis2.range
    assert low < -2.5
    assert high > 2


def test_hovering_shows_the_answer_and_the_end_of_its_prompt_as_text():
    right, wrong = answers_of(offset_plane(PLANE))
    assert list(right.text) == ["Is 1 &lt; 2? A:<br><b>&lt;Yes&gt;</b>", "Q<br><b>maybe</b>"]
    assert list(wrong.text) == ["x" * 80 + "<br><b>no &amp; never</b>"]
    assert "%{text}" in right.hovertemplate


def test_a_plane_says_what_its_axes_are_and_keeps_angles():
    layout = offset_plane(PLANE, title="Truth").layout
    assert layout.title.text == "Truth"
    assert layout.xaxis2.title.text == "along ITI's mass-mean (units of z)"
    assert layout.yaxis2.title.text == "across it (units of z)"
    assert (layout.yaxis2.scaleanchor, layout.yaxis2.scaleratio) == ("x2", 1)
    assert layout.xaxis.matches == "x2"
    [note] = layout.annotations
    assert note.text == "L2H3: 13% of the variance of z is in this plane;<br>arrows show directions, the legend their lengths"


@pytest.mark.parametrize("figure", [cosine_distribution(GEOMETRY), offset_plane(PLANE)], ids=["distribution", "plane"])
def test_figures_have_the_look_of_all_others_and_are_plain_json(figure):
    assert figure.layout.template.layout.plot_bgcolor == "white"
    assert len(json.loads(figure.to_json())["data"]) == len(figure.data)
