"""The look of every figure, applied to each figure alone and never globally."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
#: Pixels, of a figure on a screen that needs no more room than a column.
NARROW = 420
#: How many columns of a paper a figure is as wide as.
Columns = Literal[1, 2]
#: Widths of a paper's column and of its page (3.25 and 6.75 inches, as in NeurIPS and ACL), at 96 pixels an inch.
COLUMN_WIDTHS = {1: 312, 2: 648}
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
_PAPER_AXIS = {"ticklen": 3, "title": {"standoff": 4, "font": {"size": 10}}}
_PAPER_TEMPLATE = go.layout.Template(TEMPLATE)
_PAPER_TEMPLATE.update(
    layout={
        "font": {"size": 10},
        "title": {"font": {"size": 11}, "yref": "container", "yanchor": "top"},
        "xaxis": _PAPER_AXIS,
        "yaxis": _PAPER_AXIS,
        "legend": {"tracegroupgap": 0},
    }
)
#: Pixels in a paper: what a title takes, a row of names or of ticks, a colour bar, and an edge that nothing touches.
_TITLE, ROW, _BAR, _EDGE = 22, 14, 36, 8


@dataclass(frozen=True)
class Medium:
    """What a figure is laid out for. In pixels; in a paper 96 of them are an inch, so that 9 are letters of 6.75 points.

    Args:
        width: of the paper's column or page; None is a screen, where a figure has a width of its own.
        letters: height of the letters.
        small: of those within a figure.
        line: width of a line that shows numbers.
        marker: size of a marker.
    """

    width: int | None
    letters: int
    small: int
    line: float
    marker: float

    @classmethod
    def of(cls, columns: Columns | None) -> "Medium":
        """The screen, or so many columns of a paper.

        Raises:
            ValueError: another number of columns.
        """
        if columns is None:
            return cls(None, FONT["size"], 11, 2, 8)
        if columns not in COLUMN_WIDTHS:
            raise ValueError(f"got columns={columns!r}; wanted one of {list(COLUMN_WIDTHS)}, or None for a screen")
        return cls(COLUMN_WIDTHS[columns], 10, 9, 1.5, 5)

    def lay_out(
        self,
        figure: go.Figure,
        title: str,
        *,
        screen: tuple[int, int],
        height: int,
        above: int = 0,
        below: int = 2 * ROW,
        colours: str = "",
    ) -> None:
        """Give a figure our look, its title and its size.

        Args:
            figure: with everything else.
            title: of the figure.
            screen: width and height there.
            height: in a paper, of what lies within the axes.
            above: in a paper, what else stands between the title and the axes, such as names of panels.
            below: in a paper, what stands below the axes: ticks, the title of the axis, a legend.
            colours: what those of the colour axis are, if there is one. Its bar is beside the figure on a screen, above it in
                a paper, where it takes no width from it.
        """
        figure.update_layout(template=TEMPLATE, title_text=title, width=screen[0], height=screen[1])
        if self.width is None:
            if colours:
                figure.update_coloraxes(colorbar={"title": {"text": colours, "side": "right"}, "thickness": 14})
            return
        lines = textwrap.wrap(colours, self.width // 6)
        edge = _EDGE + (_TITLE if title else 0)
        top = edge + len(lines) * ROW + (_BAR if lines else 0) + above
        total = top + height + below + _EDGE
        figure.update_annotations(font_size=self.letters)
        if lines:
            # Placed from the figure's edge, as it would move everything if placed from the axes. Its own title would lie on it.
            y = 1 - (edge + len(lines) * ROW + 2) / total
            bar = {"orientation": "h", "thickness": 8, "ticklen": 3, "nticks": 7, "x": 0.5, "xpad": 0, "ypad": 0}
            figure.update_coloraxes(colorbar={**bar, "yref": "container", "y": y, "yanchor": "top"})
            figure.add_annotation(
                text="<br>".join(lines), x=0.5, y=1, xref="paper", yref="paper", yanchor="bottom", yshift=above + _BAR,
                showarrow=False, font_size=self.letters,
            )  # fmt: skip
        figure.update_layout(template=_PAPER_TEMPLATE, title_y=1 - _EDGE / total, width=self.width, height=total)
        figure.update_layout(margin={"l": _EDGE, "r": _EDGE, "t": top, "b": _EDGE + below})


def markup(text: str) -> str:
    """A text from data as Plotly shows it literally: it takes `<` for a tag, `&` for a character and `$` for a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def words(name: str) -> str:
    """The name of a metric as an axis says it: `exact match`."""
    return name.replace("_", " ")


def line_styles(names: Sequence[str], medium: Medium) -> dict[str, dict[str, Any]]:
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
        name: {
            "line": {"color": colour, "dash": dash, "width": medium.line},
            "marker": {"color": colour, "symbol": symbol, "size": medium.marker},
        }
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
