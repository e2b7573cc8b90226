"""Where learned offsets point: their cosines with other directions, and one head's offset in the plane with ITI's edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from lofit_lens.analysis.geometry import SPACES, OffsetGeometry, Space, cosine_null
from lofit_lens.analysis.plane import OffsetPlane
from lofit_lens.plots.template import (
    COMPARED,
    LEARNED,
    LEGEND_BELOW,
    RIGHT,
    ROW,
    SELECTED,
    WRONG,
    Columns,
    Medium,
    markup,
)

BINS = np.linspace(-1, 1, 41)
#: The two ends are left out: in two dimensions, the density is infinite there.
GRID = np.linspace(-1, 1, 403)[1:-1]
#: Of random directions, what lies between the dotted lines.
CHANCE_SHARE = 0.95
#: Of fewer heads, a histogram says nothing that they do not say one by one.
FEWEST_BINNED = 10
#: Pixels of a panel in a paper.
_PANEL = 46
#: Of the answers' extent along ITI's direction, the length of arrows: their own may be many times that.
_ARROW = 0.4
#: Characters of a prompt's end that a hover text shows.
PROMPT_SHOWN = 80


def cosine_distribution(
    geometry: OffsetGeometry,
    space: Space = "z",
    *,
    directions: Sequence[str] | None = None,
    title: str = "",
    columns: Columns | None = None,
) -> go.Figure:
    """Histograms over heads of the offsets' cosines, a panel for each direction, with the density of random directions.

    A panel of fewer than ten heads has no histogram. Its name says how many heads lie outside the 95 % that chance gives, and
    how many of them would by chance.

    Args:
        geometry: of one adapter.
        space: where the cosines are taken.
        directions: which to draw, from top to bottom; None is all.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: an unknown space, no directions, one that no head has a cosine with, or another number of columns.
    """
    medium = Medium.of(columns)
    panels = _panels(geometry, space, directions)
    null = cosine_null(geometry.d_head)
    bound, peak = null.ppf((1 + CHANCE_SHARE) / 2), null.pdf(0)
    bars = [_histogram(panel) if len(panel) >= FEWEST_BINNED else None for panel in panels.values()]
    top = max([peak, *(float(np.asarray(bar.y).max()) for bar in bars if bar)])
    names = [_panel_name(name, panel, bound) for name, panel in panels.items()]
    gap = 0.3 / len(panels) if medium.width is None else 1.4 * ROW / ((_PANEL + 1.4 * ROW) * len(panels))
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=gap, subplot_titles=names)
    depth = 0.08 if medium.width is None else 0.12  # of the rug, which hangs below the axis
    first_binned = next((row for row, bar in enumerate(bars, start=1) if bar), 0)
    for row, (panel, bar) in enumerate(zip(panels.values(), bars, strict=True), start=1):
        if bar:
            figure.add_trace(bar.update(showlegend=row == first_binned), row=row, col=1)
        for trace in (_rug(panel, -depth * top, medium.marker + 1), _density(null, medium)):
            figure.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
        for edge in (-bound, bound):
            line = {"color": SELECTED, "dash": "dot", "width": medium.line}
            figure.add_shape(type="line", x0=edge, x1=edge, y0=0, y1=peak, line=line, row=row, col=1)
    # Said, because W_O and the covariance stretch what is uniform in z.
    inexact = "" if space == "z" else "<br>chance: uniform in this space, not in z"
    figure.update_xaxes(range=[-1, 1], ticks="")
    figure.update_xaxes(
        title_text=f"cosine of the offset with the direction ({space}){inexact}", ticks="outside", row=len(panels)
    )
    # Said, because a range that axes share is found from the first panel alone.
    figure.update_yaxes(matches="y", range=[-2 * depth * top, 1.05 * top], nticks=4)
    figure.update_yaxes(matches=None, row=1)  # which the others match
    figure.update_yaxes(title_text="density (1 / cosine)", row=(len(panels) + 1) // 2)
    figure.update_layout(bargap=0, margin_b=100, legend=LEGEND_BELOW)
    height = round((_PANEL + 1.4 * ROW) * len(panels))
    medium.lay_out(figure, title, screen=(680, 130 * len(panels) + 190), height=height, above=ROW, below=5 * ROW)
    return figure


def _density(null: Any, medium: Medium) -> go.Scatter:
    return go.Scatter(
        x=GRID,
        y=null.pdf(GRID),
        mode="lines",
        line={"color": SELECTED, "width": medium.line, "simplify": False},
        name=f"chance (dotted: {CHANCE_SHARE:.0%} of it)",
        hovertemplate="random directions<br>density %{y:.3g} at cosine %{x:.2f}<extra></extra>",
    )


def _panels(geometry: OffsetGeometry, space: Space, directions: Sequence[str] | None) -> dict[str, pd.DataFrame]:
    if space not in SPACES:
        raise ValueError(f"got space {space!r}; wanted one of {', '.join(SPACES)}")
    frame = geometry.to_frame().merge(geometry.strengths(), on=["label", "layer", "head"])
    of_space = {str(name): pd.DataFrame(rows) for name, rows in frame[frame["space"] == space].groupby("direction")}
    drawn = geometry.directions if directions is None else tuple(directions)
    if not drawn or not set(drawn) <= set(of_space):
        raise ValueError(f"got directions {list(drawn)}; wanted some that heads have cosines with: {list(of_space)}")
    return {direction: of_space[direction] for direction in drawn}


def _panel_name(direction: str, panel: pd.DataFrame, bound: float) -> str:
    n_outside, expected = (np.abs(panel["cosine"]) > bound).sum(), (1 - CHANCE_SHARE) * len(panel)
    return f"{markup(direction)}: {n_outside} of {len(panel)} heads outside ({expected:.3g} by chance)"


def _histogram(panel: pd.DataFrame) -> go.Bar:
    counts, _ = np.histogram(panel["cosine"], BINS)
    width = BINS[1] - BINS[0]
    return go.Bar(
        x=(BINS[:-1] + BINS[1:]) / 2,
        y=counts / counts.sum() / width,
        width=width,
        marker={"color": RIGHT, "opacity": 0.5},
        name="heads, histogram",
        customdata=counts,
        hovertemplate="%{customdata} heads around cosine %{x:.3f}<extra></extra>",
    )


def _rug(panel: pd.DataFrame, height: float, size: float) -> go.Scatter:
    return go.Scatter(
        x=panel["cosine"],
        y=[height] * len(panel),
        mode="markers",
        marker={"color": RIGHT, "symbol": "line-ns", "size": size, "line": {"color": RIGHT, "width": 1.5}},
        name="each head",
        customdata=panel[["label", "p", "effective_alpha"]],
        hovertemplate=(
            "%{customdata[0]}<br>cosine %{x:.3f}, p = %{customdata[1]:.2g}<br>"
            "effective alpha %{customdata[2]:.2f} standard deviations<extra></extra>"
        ),
    )


def offset_plane(plane: OffsetPlane, *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """Right and wrong answers in the plane of ITI's direction and the learned offset of a head, and where both edits point.

    Above, how the answers lie along ITI's direction. Arrows are as long as the answers leave room for, whatever the edits'
    lengths, which the legend has.

    Args:
        plane: of one head. Both axes have one scale, so that angles are true.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: another number of columns.
    """
    medium = Medium.of(columns)
    frame = plane.to_frame()
    low, high = plane.points.numpy().min(axis=0), plane.points.numpy().max(axis=0)
    reach = _ARROW * float(high[0] - low[0])
    (left, bottom), (right, top) = np.minimum(low, _to_length(plane.offset.numpy(), reach)), np.maximum(high, reach)
    x_range, y_range = _padded(left, right), _padded(bottom, top)
    # As wide as the figure leaves it, and so high that one unit is as long on both axes.
    width = 550 if medium.width is None else medium.width - 60
    height = round(width * (y_range[1] - y_range[0]) / (x_range[1] - x_range[0]))
    above = 90 if medium.width is None else 50
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[above, height], vertical_spacing=8 / (above + height + 8))
    _draw_answers(figure, frame, medium)
    edits = (
        (plane.iti, f"ITI, {plane.direction}, alpha = {plane.alpha:g}", COMPARED),
        (plane.offset, "learned offset", LEARNED),
    )
    for end, name, colour in edits:
        for trace in _arrow(end.numpy(), reach, name, colour, medium):
            figure.add_trace(trace, row=2, col=1)
    share = f"{plane.head.label}: {plane.variance_share:.0%} of the variance of z is in this plane"
    figure.add_annotation(
        text=f"{share};<br>arrows show directions, the legend their lengths",
        x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False, align="left",
    )  # fmt: skip
    figure.update_yaxes(title_text="density", showticklabels=False, ticks="", rangemode="tozero", row=1)
    figure.update_xaxes(range=x_range)
    figure.update_xaxes(title_text=f"along ITI's {plane.direction} (units of z)", row=2)
    figure.update_yaxes(title_text="across it (units of z)", range=y_range, scaleanchor="x2", scaleratio=1, row=2)
    figure.update_layout(margin={"t": 90, "b": 130}, legend=LEGEND_BELOW)
    screen = (640, above + height + 8 + 90 + 130)
    medium.lay_out(figure, title, screen=screen, height=above + height + 8, above=2 * ROW, below=7 * ROW)
    return figure


def _draw_answers(figure: go.Figure, frame: pd.DataFrame, medium: Medium) -> None:
    """Both kinds in the plane, and above it how they lie along its first axis."""
    kinds = [(True, "right answers", RIGHT, "circle"), (False, "wrong answers", WRONG, "x")]
    # The rarer kind is drawn over the other.
    for is_right, name, colour, symbol in sorted(kinds, key=lambda kind: -(frame["is_right"] == kind[0]).sum()):
        answers = pd.DataFrame(frame[frame["is_right"] == is_right])
        figure.add_trace(
            _marginal(np.asarray(answers["along_iti"]), np.asarray(frame["along_iti"]), name, colour), row=1, col=1
        )
        figure.add_scatter(
            x=answers["along_iti"],
            y=answers["across_iti"],
            mode="markers",
            name=f"{name} (n = {len(answers)})",
            legendgroup=name,
            marker={"color": colour, "symbol": symbol, "size": 0.75 * medium.marker, "opacity": 0.5},
            text=[_hover_text(prompt, answer) for prompt, answer in zip(answers["prompt"], answers["answer"], strict=True)],
            hovertemplate=f"{name}<br>%{{text}}<extra></extra>",
            row=2,
            col=1,
        )


def _to_length(end: NDArray[Any], length: float) -> NDArray[Any]:
    return end * length / np.hypot(*end)


def _padded(low: float, high: float) -> list[float]:
    room = 0.05 * (high - low)
    return [low - room, high + room]


def _marginal(values: NDArray[Any], everything: NDArray[Any], name: str, colour: str) -> go.Scatter:
    density, edges = np.histogram(values, bins=30, range=(everything.min(), everything.max()), density=True)
    return go.Scatter(
        x=edges.repeat(2)[1:-1],
        y=density.repeat(2),
        mode="lines",
        line={"color": colour, "width": 1, "simplify": False},
        fill="tozeroy",
        name=name,
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


def _arrow(end: NDArray[Any], reach: float, name: str, colour: str, medium: Medium) -> list[go.Scatter]:
    """A line, which the legend shows, and its head, which would be a circle there."""
    length, drawn = float(np.hypot(*end)), _to_length(end, reach)
    said = f"{name}: {length:.2g} long"
    size = 2 * medium.marker
    line = go.Scatter(
        # Not to the tip, which is thinner.
        x=[0, 0.95 * drawn[0]],
        y=[0, 0.95 * drawn[1]],
        mode="lines",
        name=said,
        line={"color": colour, "width": 1.5 * medium.line},
        hovertemplate=f"{said}, to ({end[0]:.3g}, {end[1]:.3g}) from the mean of all answers, in units of z<extra></extra>",
    )
    head = go.Scatter(
        x=[0, drawn[0]],
        y=[0, drawn[1]],
        mode="markers",
        marker={
            "color": colour,
            "symbol": ["circle", "arrow"],
            "size": [0, size],
            "opacity": 1,
            "angleref": "previous",
            "line": {"width": 0},
        },
        showlegend=False,
        hoverinfo="skip",
    )
    return [line, head]


def _hover_text(prompt: str, answer: str) -> str:
    """The end of the prompt and the answer in bold, on a line each; what a hover text would take for mark-up is escaped."""
    question, answer = (markup(" ".join(text.split())) for text in (prompt[-PROMPT_SHOWN:], answer))
    return f"{question}<br><b>{answer}</b>"
