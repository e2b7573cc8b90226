"""The look of every figure, applied to each figure alone and never globally."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

INK = "#222222"
#: Sequential, for quantities that cannot be negative; perceptually uniform, safe for colour-blind readers.
SEQUENTIAL = "Viridis"
#: For signed quantities, centred at 0; blue and red are told apart by colour-blind readers, red and green are not.
DIVERGING = "RdBu"
#: What is not there: a layer without attention, a set that a head is not in.
MUTED = "#dddddd"
#: The outline of what is selected: stands out on every colour of the scale, in print too.
SELECTED = "#d55e00"
#: Lines: colours of Okabe and Ito, safe for colour-blind readers, and a dash and a marker of their own for those who see none.
LINES = (
    ("#0072b2", "solid", "circle"),
    ("#d55e00", "dash", "square"),
    ("#009e73", "dot", "diamond"),
    ("#cc79a7", "dashdot", "triangle-up"),
    ("#e69f00", "longdash", "cross"),
    ("#56b4e9", "longdashdot", "star"),
)
#: Two kinds of points, and two edits of them.
RIGHT, WRONG = "#0072b2", "#e69f00"
LEARNED, COMPARED = "#000000", "#009e73"
#: What is there for orientation only.
REFERENCE = "#888888"
#: Pixels, of a figure that suits one column; `rendering.sized` brings it, or any other, to a column's own width.
NARROW = 420
FONT = {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK}
#: Without a standoff, the title of an axis stands where it would with short tick labels, and long ones run into it.
AXIS = {
    "showgrid": False,
    "zeroline": False,
    "showline": True,
    "linecolor": REFERENCE,
    "ticks": "outside",
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 10},
}
#: Below everything else, whatever the height of the figure.
LEGEND_BELOW = {"orientation": "h", "x": 0.5, "xanchor": "center", "yref": "container", "y": 0, "yanchor": "bottom"}

TEMPLATE = go.layout.Template(
    layout={
        "font": FONT,
        "title": {"x": 0.5, "xanchor": "center", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 30, "t": 70, "b": 55},
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
)


def markup(text: str) -> str:
    """A text from data as Plotly shows it literally: it takes `<` for a tag, `&` for a character and `$` for a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each name, the `line` and the `marker` of a scatter trace.

    Raises:
        ValueError: more names than lines that can be told apart.
    """
    if len(names) > len(LINES):
        raise ValueError(
            f"got {len(names)} lines to draw, {list(names)}; wanted at most {len(LINES)}: draw them in several figures"
        )
    looks = zip(names, LINES, strict=False)
    return {
        name: {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"color": colour, "symbol": symbol, "size": 8}}
        for name, (colour, dash, symbol) in looks
    }


def error_bars(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict[str, Any]:
    """The `error_y` of a scatter trace that reaches from low to high."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
        "thickness": 1.2,
        "width": 3,
    }
