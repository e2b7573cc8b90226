"""Tasks on each other's heads, next to their own: the LoFiT paper's Figure 2 (arXiv 2406.01563, section 6)."""

import math
import textwrap
from typing import Any

import plotly.graph_objects as go

from lofit_lens.analysis.head_transfers import BASE, HeadTransfer
from lofit_lens.plots.template import DIVERGING, INK, MUTED, NARROW, TEMPLATE, markup

#: Colours span so many points around 100 %: no fewer, lest noise look like an effect; no more, lest one cell take them all.
_NARROWEST, _WIDEST = 10, 100
#: Characters in a line of the note, which one column of a paper has room for; pixels of its letters.
_NOTE_WIDTH, _NOTE_SIZE = 48, 10


def head_transfer(result: HeadTransfer, *, title: str = "") -> go.Figure:
    """Metric of each task (column) on heads of each source (row), marked where it is lower than on the task's own heads.

    Colours are relative to own heads, which are outlined; a cell that is not compared, or not there, is grey. One
    column of a paper has room for about nine tasks.
    """
    sources, targets = ([markup(name) for name in names] for names in (result.sources, result.targets))
    shown = {(row["source"], row["target"]): row for row in result.to_frame().to_dict("records")}
    rows = [[shown.get((source, target)) for target in result.targets] for source in result.sources]
    span = _span(result)
    figure = go.Figure(
        go.Heatmap(
            z=[[_percent(row) for row in of_source] for of_source in rows],
            x=targets,
            y=sources,
            text=[[_text(row) for row in of_source] for of_source in rows],
            texttemplate="%{text}",
            customdata=[[_hover(row) for row in of_source] for of_source in rows],
            hovertemplate="task %{x}, heads of %{y}<br>%{customdata}<extra></extra>",
            colorscale=DIVERGING,
            zmin=100 - span,
            zmax=100 + span,
            # Above, where it takes no width from the cells.
            colorbar={
                "title": {"text": "relative to own heads (%)", "side": "top"},
                **{"orientation": "h", "thickness": 10, "x": 0.5, "y": 1.0, "yanchor": "bottom", "xpad": 0, "ypad": 4},
            },
            xgap=2,
            ygap=2,
        )
    )
    for name in set(result.sources) & set(result.targets):
        column, row = result.targets.index(name), result.sources.index(name)
        figure.add_shape(
            type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line={"color": INK, "width": 2}
        )
    metrics = set(result.metrics.values())
    labels = [f"{name} ({metric})" for name, metric in zip(targets, result.metrics.values(), strict=True)]
    measured = f" ({metrics.pop()})" if len(metrics) == 1 else ""
    figure.update_xaxes(
        title_text=_axis_title(f"Task learned{measured}", result), title_font_size=_NOTE_SIZE, title_standoff=18
    )
    figure.update_xaxes(tickvals=targets, ticktext=targets if measured else labels)
    figure.update_yaxes(title_text="Heads of", autorange="reversed", tickvals=sources)
    figure.update_layout(template=TEMPLATE, title_text=title, plot_bgcolor=MUTED)
    # So tall that rows are as high as letters even where the figure is brought to one column of a paper.
    width = max(NARROW, 60 * len(targets) + 150)
    figure.update_layout(width=width, height=round(width * (0.75 + 0.05 * len(sources))))
    return figure


def _axis_title(text: str, result: HeadTransfer) -> str:
    """With the note below it, which so stays below labels of any length."""
    lines = textwrap.wrap(f"{result.note} Outlined: own heads.", _NOTE_WIDTH)
    return "<br>".join([f"<span style='font-size:13px'>{text}</span>", *map(markup, lines)])


def _percent(row: dict[str, Any] | None) -> float | None:
    return None if row is None or math.isnan(row["relative"]) else 100 * row["relative"]


def _span(result: HeadTransfer) -> float:
    """Of the colours, from 100 %; the base model, which may be far from everything, does not count."""
    rows = result.to_frame().to_dict("records")
    away = [abs(100 * row["relative"] - 100) for row in rows if row["source"] != BASE and not math.isnan(row["relative"])]
    return min(max([_NARROWEST, *away]), _WIDEST)


def _text(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.2f}{row['mark']}"


def _hover(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    seeds = f"{row['n_seeds']} seed{'s' * (row['n_seeds'] != 1)}"
    value = f"{row['metric']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] (n = {row['n_examples']}, {seeds})"
    if math.isnan(row["difference"]):
        return f"{value}<br>own heads" if row["source"] == row["target"] else f"{value}<br>own heads are not there"
    ratio = [_rounded(100 * row[name]) for name in ("relative", "relative_low", "relative_high")]
    difference = [f"{row[name]:+.3f}" for name in ("difference", "difference_low", "difference_high")]
    lines = [
        value,
        f"{ratio[0]} % of own heads [{ratio[1]}, {ratio[2]}]",
        f"difference from own heads {difference[0]} [{difference[1]}, {difference[2]}]",
        f"p {_p(row['p_less'])} (lower), {_p(row['p_two_sided'])} (two-sided), q {_p(row['q_less'])} (lower)",
        f"detectable difference {row['detectable']:.3f}",
    ]
    return "<br>".join(lines)


def _rounded(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.0f}"


def _p(number: float) -> str:
    if math.isnan(number):
        return "-"
    return "&lt; 0.001" if number < 0.001 else f"{number:.3f}"
