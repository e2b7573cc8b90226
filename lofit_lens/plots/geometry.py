"""Where learned offsets point: their cosines with other directions, and one head's offset in the plane with ITI's edit."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.analysis.geometry import SPACES, OffsetGeometry, Space, cosine_null
from lofit_lens.analysis.plane import OffsetPlane
from lofit_lens.plots.template import COMPARED, LEARNED, LEGEND_BELOW, RIGHT, SELECTED, TEMPLATE, WRONG, markup

BINS = np.linspace(-1, 1, 41)
#: The two ends are left out: in two dimensions, the density is infinite there.
GRID = np.linspace(-1, 1, 403)[1:-1]
#: Of random directions, what lies between the dotted lines.
CHANCE_SHARE = 0.95
#: Characters of a prompt's end that a hover text shows.
PROMPT_SHOWN = 80


def cosine_distribution(
    geometry: OffsetGeometry, space: Space = "z", *, directions: Sequence[str] | None = None, title: str = ""
) -> go.Figure:
    """Histograms over heads of the offsets' cosines, a panel for each direction, with the density of random directions.

    Args:
        geometry: of one adapter.
        space: where the cosines are taken.
        directions: which to draw, from top to bottom; None is all.
        title: of the figure.

    Raises:
        ValueError: an unknown space, no directions, or one that no head has a cosine with.
    """
    if space not in SPACES:
        raise ValueError(f"got space {space!r}; wanted one of {', '.join(SPACES)}")
    frame = geometry.to_frame().merge(geometry.strengths(), on=["label", "layer", "head"])
    of_space = {str(name): pd.DataFrame(rows) for name, rows in frame[frame["space"] == space].groupby("direction")}
    drawn = geometry.directions if directions is None else tuple(directions)
    if not drawn or not set(drawn) <= set(of_space):
        raise ValueError(f"got directions {list(drawn)}; wanted some that heads have cosines with: {list(of_space)}")
    panels = [of_space[direction] for direction in drawn]
    null = cosine_null(geometry.d_head)
    bound, peak = null.ppf((1 + CHANCE_SHARE) / 2), null.pdf(0)
    bars = [_histogram(panel) for panel in panels]
    top = max(peak, *(float(np.asarray(bar.y).max()) for bar in bars))
    outside = [f"{(np.abs(panel['cosine']) > bound).sum()} of {len(panel)} heads" for panel in panels]
    figure = make_subplots(
        len(panels), 1, shared_xaxes=True, vertical_spacing=0.3 / len(panels),
        subplot_titles=[
            f"{markup(direction)}: {count} beyond chance"
            for direction, count in zip(drawn, outside, strict=True)
        ],
    )  # fmt: skip
    for row, (panel, bar) in enumerate(zip(panels, bars, strict=True), start=1):
        density = go.Scatter(
            x=GRID, y=null.pdf(GRID), mode="lines", line={"color": SELECTED, "width": 2, "simplify": False},
            name=f"random directions (dotted: {CHANCE_SHARE:.0%} of them)",
            hovertemplate="random directions<br>density %{y:.3g} at cosine %{x:.2f}<extra></extra>",
        )  # fmt: skip
        for trace in (bar, _rug(panel, -0.08 * top), density):
            figure.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
        for edge in (-bound, bound):
            line = {"color": SELECTED, "dash": "dot", "width": 1.5}
            figure.add_shape(type="line", x0=edge, x1=edge, y0=0, y1=peak, line=line, row=row, col=1)
    figure.update_xaxes(range=[-1, 1], ticks="")
    figure.update_xaxes(title_text=f"cosine of the offset with the direction ({space})", ticks="outside", row=len(panels))
    # Said, because a range that axes share is found from the first panel alone.
    figure.update_yaxes(matches="y", range=[-0.16 * top, 1.05 * top])
    figure.update_yaxes(matches=None, row=1)  # which the others match
    figure.update_yaxes(title_text="density (1 / cosine)", row=(len(panels) + 1) // 2)
    figure.update_layout(
        template=TEMPLATE, title_text=title, bargap=0, width=680, height=130 * len(panels) + 190, margin_b=100,
legend=LEGEND_BELOW,
    )  # fmt: skip
    return figure


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


def _rug(panel: pd.DataFrame, height: float) -> go.Scatter:
    return go.Scatter(
        x=panel["cosine"],
        y=[height] * len(panel),
        mode="markers",
        marker={"color": RIGHT, "symbol": "line-ns", "size": 9, "line": {"color": RIGHT, "width": 1.5}},
        name="each head",
        customdata=panel[["label", "p", "effective_alpha"]],
        hovertemplate=(
            "%{customdata[0]}<br>cosine %{x:.3f}, p = %{customdata[1]:.2g}<br>"
            "effective alpha %{customdata[2]:.2f} standard deviations<extra></extra>"
        ),
    )


def offset_plane(plane: OffsetPlane, *, title: str = "") -> go.Figure:
    """Right and wrong answers in the plane of ITI's direction and the learned offset of a head, and where both edits move them.

    Args:
        plane: of one head. Both axes have one scale, so that angles are true.
        title: of the figure.
    """
    figure = go.Figure()
    kinds = ((True, "right answers", RIGHT, "circle"), (False, "wrong answers", WRONG, "x"))
    frame = plane.to_frame()
    for is_right, name, colour, symbol in kinds:
        answers = frame[frame["is_right"] == is_right]
        figure.add_scatter(
            x=answers["along_iti"],
            y=answers["across_iti"],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.7},
            text=[_hover_text(prompt, answer) for prompt, answer in zip(answers["prompt"], answers["answer"], strict=True)],
            hovertemplate=f"{name}<br>%{{text}}<extra></extra>",
        )
    figure.add_trace(_arrow(plane.iti.tolist(), f"ITI, {plane.direction}, alpha = {plane.alpha:g}", COMPARED))
    figure.add_trace(_arrow(plane.offset.tolist(), "learned offset", LEARNED))
    figure.add_annotation(
        text=f"{plane.head.label}: {plane.variance_share:.0%} of the variance of z is in this plane",
        x=0, y=1.02, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
    )  # fmt: skip
    figure.update_xaxes(title_text=f"along ITI's {plane.direction} (units of z)", constrain="domain")
    figure.update_yaxes(title_text="across it (units of z)", scaleanchor="x", scaleratio=1, constrain="domain")
    figure.update_layout(template=TEMPLATE, title_text=title, width=640, height=560, margin_b=130, legend=LEGEND_BELOW)
    return figure


def _arrow(end: list[float], name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=[0, end[0]],
        y=[0, end[1]],
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 3},
        marker={"color": colour, "symbol": ["circle", "arrow"], "size": [1, 16], "angleref": "previous"},
        hovertemplate=f"{name}<br>(%{{x:.3g}}, %{{y:.3g}}) from the mean of all answers, in units of z<extra></extra>",
    )


def _hover_text(prompt: str, answer: str) -> str:
    """The end of the prompt and the answer in bold, on a line each; what a hover text would take for mark-up is escaped."""
    question, answer = (markup(" ".join(text.split())) for text in (prompt[-PROMPT_SHOWN:], answer))
    return f"{question}<br><b>{answer}</b>"
