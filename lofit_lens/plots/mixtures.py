"""Mixture curves: every task on the way from one edit to another, and beside it under other sums of the two."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from lofit_lens.analysis.mixtures import Mixture
from lofit_lens.plots.template import (
    LEGEND_BELOW,
    NARROW,
    REFERENCE,
    ROW,
    Columns,
    Medium,
    error_bars,
    line_styles,
    markup,
    words,
)

#: In units of weight: how far apart sums stand that are not on the line; and tasks, so that none hides another's interval.
_STEP, _SHIFT = 0.45, 0.03


def mixture_curves(
    found: Mixture, *, names: tuple[str, str] = ("a", "b"), title: str = "", columns: Columns | None = None
) -> go.Figure:
    """Each task's metric along the line from a to b (weights that add up to 1), then under other weights, with 95 % intervals.

    Below each point stand both weights, that of a above that of b; two zeros are the base model.

    Args:
        found: the mixture.
        names: of the two edits.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: more tasks than lines that can be told apart, or another number of columns.
    """
    medium = Medium.of(columns)
    names = (markup(names[0]), markup(names[1]))
    on_line = sorted((pair for pair in found.weights if _is_on_line(pair)), key=lambda pair: pair[1])
    others = [pair for pair in found.weights if not _is_on_line(pair)]
    end = on_line[-1][1] if on_line else 0.0
    places = {pair: pair[1] for pair in on_line} | {pair: end + _STEP * i for i, pair in enumerate(others, start=1)}
    labels = {pair: _sum(pair, names) for pair in found.weights}
    groups = [(pairs, mode) for pairs, mode in ((on_line, "lines+markers"), (others, "markers")) if pairs]
    figure = go.Figure()
    for i, (task, style) in enumerate(line_styles(found.tasks, medium).items()):
        shift = _SHIFT * (i - (len(found.tasks) - 1) / 2)
        for pairs, mode in groups:
            points = _points(found, task, pairs, labels).update(x=[places[pair] + shift for pair in pairs])
            figure.add_trace(points.update(mode=mode, showlegend=pairs is groups[0][0], **style))
    if on_line and others:
        figure.add_vline(end + _STEP / 2, line={"color": REFERENCE, "width": 1})
    ticks = [f"{a:g}<br>{b:g}{'' if a or b else '<br>(base)'}" for a, b in places]
    figure.update_xaxes(title_text=f"Weights: {names[0]} (upper row), {names[1]} (lower row)", tickangle=0)
    figure.update_xaxes(tickmode="array", tickvals=list(places.values()), ticktext=ticks)
    figure.update_yaxes(title_text="metric (0 to 1)")
    figure.update_layout(legend=LEGEND_BELOW)
    medium.lay_out(figure, title, screen=(NARROW, 380), height=160, below=(4 + math.ceil(len(found.tasks) / 2)) * ROW)
    return figure


def _is_on_line(pair: tuple[float, float]) -> bool:
    return abs(sum(pair) - 1) < 1e-9


def _sum(pair: tuple[float, float], names: tuple[str, str]) -> str:
    terms = [name if weight == 1 else f"{weight:g} {name}" for weight, name in zip(pair, names, strict=True) if weight]
    return " + ".join(terms) or "base model"


def _points(
    found: Mixture, task: str, pairs: Sequence[tuple[float, float]], labels: Mapping[tuple[float, float], str]
) -> go.Scatter:
    rows = [found.evaluations[pair, task].to_row() for pair in pairs]
    values, lows, highs = ([row[column] for row in rows] for column in ("value", "low", "high"))
    metric, shown = words(rows[0]["metric"]), markup(task)
    return go.Scatter(
        y=values,
        error_y=error_bars(values, lows, highs),
        customdata=[[labels[pair], row["low"], row["high"], row["n"]] for pair, row in zip(pairs, rows, strict=True)],
        name=f"{shown} ({metric})",
        legendgroup=task,
        hovertemplate=(
            f"{shown} under %{{customdata[0]}}<br>{metric} %{{y:.3f}} (n = %{{customdata[3]}})<br>"
            "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]<extra></extra>"
        ),
    )
