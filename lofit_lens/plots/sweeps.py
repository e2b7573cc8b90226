"""Sweep curves: a metric over a quantity that edits were fitted at, one line for each method, say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lofit_lens.analysis.sweeps import Sweep
from lofit_lens.plots.template import LEGEND_BELOW, NARROW, ROW, Columns, Medium, error_bars, line_styles, markup, words

#: How far apart lines stand at one x, as a share of the axis, so that none hides another's interval.
_SHIFT = 0.015
#: Size of a run's open marker, in those of the mean's, around which it is seen where both are at one place.
_RUN = 1.5


def sweep_curves(sweeps: Mapping[str, Sweep], *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """The mean over runs of each named sweep with its 95 % interval, and an open marker for every run.

    Where x spans more than a factor of ten, its axis is logarithmic.

    Args:
        sweeps: by name.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: nothing to draw, more sweeps than lines that can be told apart, sweeps of several quantities or metrics, or
            another number of columns.
    """
    medium = Medium.of(columns)
    kinds = {(found.quantity, runs[0].metric) for found in sweeps.values() for runs in found.evaluations.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"got sweeps of these quantities and metrics: {sorted(kinds)}; wanted one or more sweeps of one of each"
        )
    [(quantity, metric)] = kinds
    xs = sorted({x for found in sweeps.values() for x in found.evaluations})
    is_log = xs[0] > 0 and xs[-1] > 10 * xs[0]
    figure = go.Figure()
    for i, (name, style) in enumerate(line_styles(list(sweeps), medium).items()):
        share = _SHIFT * (i - (len(sweeps) - 1) / 2)
        places = {x: _moved(x, share, xs, is_log=is_log) for x in xs}
        figure.add_traces(_traces(name, sweeps[name], places, style))
    figure.update_xaxes(title_text=markup(quantity), type="log" if is_log else "linear")
    figure.update_xaxes(tickmode="array", tickvals=xs, ticktext=[f"{x:g}" for x in xs])
    figure.update_yaxes(title_text=f"{words(metric)} (0 to 1)")
    figure.update_layout(legend=LEGEND_BELOW)
    medium.lay_out(figure, title, screen=(NARROW, 340), height=160, below=(2 + math.ceil(len(sweeps) / 3)) * ROW)
    return figure


def _moved(x: float, share: float, xs: Sequence[float], *, is_log: bool) -> float:
    """Where x is, moved to the right by a share of the axis."""
    if is_log:
        return x * (xs[-1] / xs[0]) ** share
    return x + share * (xs[-1] - xs[0])


def _traces(name: str, found: Sweep, places: Mapping[float, float], style: dict[str, dict[str, Any]]) -> list[go.Scatter]:
    means, runs = found.summary(), found.to_frame()
    shown, quantity = markup(name), markup(found.quantity)
    values, lows, highs = (means[column].tolist() for column in ("value", "low", "high"))
    of_means = go.Scatter(
        x=[places[x] for x in means["x"]],
        y=values,
        error_y=error_bars(values, lows, highs),
        customdata=means[["x", "low", "high", "n_runs", "n"]].to_numpy().tolist(),
        name=shown,
        legendgroup=name,
        mode="lines+markers",
        hovertemplate=(
            f"{shown}, {quantity} %{{customdata[0]}}<br>"
            "mean of %{customdata[3]} runs %{y:.3f} (n = %{customdata[4]})<br>"
            "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]<extra></extra>"
        ),
        line=style["line"],
        marker=style["marker"],
    )
    of_runs = go.Scatter(
        x=[places[x] for x in runs["x"]],
        y=runs["value"].tolist(),
        customdata=runs[["x", "run"]].to_numpy().tolist(),
        name=shown,
        legendgroup=name,
        showlegend=False,
        mode="markers",
        hovertemplate=f"{shown}, {quantity} %{{customdata[0]}}<br>run %{{customdata[1]}} %{{y:.3f}}<extra></extra>",
        marker={**style["marker"], "symbol": f"{style['marker']['symbol']}-open", "size": _RUN * style["marker"]["size"]},
    )
    return [of_means, of_runs]
