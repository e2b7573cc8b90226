"""Tasks on each other's heads, next to their own: the LoFiT paper's Figure 2 (arXiv 2406.01563, section 6)."""

import math
import textwrap
from typing import Any

import plotly.graph_objects as go

from lofit_lens.analysis.head_transfers import BASE, HeadTransfer
from lofit_lens.plots.template import DIVERGING, INK, MUTED, NARROW, ROW, Columns, Medium, markup, words

#: Colours span so many points around 100 %: no fewer, lest noise look like an effect; no more, lest one cell take them all.
_NARROWEST, _WIDEST = 10, 100
#: Characters in a line of the note, which one column of a paper has room for, and which a page has.
_NOTE_WIDTH, _WIDE_NOTE = 48, 110


def head_transfer(result: HeadTransfer, *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """Metric of each task (column) on heads of each source (row), marked where it is lower than on the task's own heads.

    Colours are relative to own heads, which are outlined; a cell that is not compared, or not there, is grey. One
    column of a paper has room for about nine tasks.

    Args:
        result: of tasks on heads.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: another number of columns.
    """
    medium = Medium.of(columns)
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
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
        )
    )
    for name in set(result.sources) & set(result.targets):
        column, row = result.targets.index(name), result.sources.index(name)
        figure.add_shape(
            type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, line={"color": INK, "width": 2}
        )
    metrics = set(map(words, result.metrics.values()))
    labels = [f"{name} ({words(metric)})" for name, metric in zip(targets, result.metrics.values(), strict=True)]
    measured = f" ({metrics.pop()})" if len(metrics) == 1 else ""
    lines = textwrap.wrap(f"{result.note} Outlined: own heads.", _WIDE_NOTE if columns == 2 else _NOTE_WIDTH)
    # The note stands in the title, and so stays below labels of any length.
    axis_title = [f"<span style='font-size:{medium.letters}px'>Task learned{measured}</span>", *map(markup, lines)]
    figure.update_xaxes(
        title_text="<br>".join(axis_title), title_font_size=10 if medium.width is None else medium.small, title_standoff=18
    )
    figure.update_xaxes(tickvals=targets, ticktext=targets if measured else labels)
    figure.update_yaxes(title_text="Heads of", autorange="reversed", tickvals=sources)
    scale = {"colorscale": DIVERGING, "cmin": 100 - span, "cmax": 100 + span}
    figure.update_layout(coloraxis=scale, plot_bgcolor=MUTED)
    width = max(NARROW, 60 * len(targets) + 230)
    screen = (width, round(width * (0.75 + 0.05 * len(sources))))
    below = (4 + len(lines)) * ROW
    medium.lay_out(figure, title, screen=screen, height=22 * len(sources), below=below, colours="relative to own heads (%)")
    return figure


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
