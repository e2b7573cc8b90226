"""What offsets say: a row of tokens for each head."""

import plotly.graph_objects as go

from lofit_lens.analysis.reading import Lens, OffsetReading, Side
from lofit_lens.plots.template import SEQUENTIAL, Columns, Medium, markup

#: Pixels of a cell on a screen, of what lies beside the cells in a paper, and of what stays free at a cell's edges.
_CELL, _BESIDE, _EDGES = 72, 60, 8
#: Width of a letter over its height, on average.
_LETTER = 0.56
#: As axes say them.
_LENSES: dict[Lens, str] = {
    "with norm": "logit lens, with the final norm",
    "without norm": "logit lens, without the final norm",
    "Jacobian": "Jacobian lens",
}


def offset_tokens(
    reading: OffsetReading,
    *,
    lens: Lens = "with norm",
    side: Side = "top",
    k: int = 10,
    title: str = "",
    columns: Columns | None = None,
) -> go.Figure:
    """The `k` likeliest (or unlikeliest) tokens of each head's offset in order, coloured by probability.

    One column of a paper has room for four tokens of a head, two for nine; longer ones are cut to their cells.

    Args:
        reading: heads become rows, in its order.
        lens: which of those it was read with.
        side: the likeliest or the unlikeliest tokens.
        k: columns, at most as many as were read.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: a lens, side or k that was not read, or another number of columns.
    """
    medium = Medium.of(columns)
    rows = reading.of(lens, side, k)
    cell = _CELL if medium.width is None else (medium.width - _BESIDE) / k
    size = 12 if medium.width is None else medium.small
    highest = max(read.probability for row in rows.values() for read in row)
    letters = int((cell - _EDGES) / (_LETTER * size))
    figure = go.Figure(
        go.Heatmap(
            z=[[read.probability for read in row] for row in rows.values()],
            x=list(range(1, k + 1)),
            y=[head.label for head in rows],
            text=[[_cut(read.token, letters) for read in row] for row in rows.values()],
            texttemplate="%{text}",
            textfont={"size": size},
            customdata=[[[markup(read.token), read.logit] for read in row] for row in rows.values()],
            hovertemplate=(
                "%{y}, rank %{x}<br>%{customdata[0]}<br>logit %{customdata[1]:.3f}<br>probability %{z:.3g}<extra></extra>"
            ),
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": highest, "colorbar_exponentformat": "power"})
    which = "likeliest" if side == "top" else "unlikeliest"
    figure.update_xaxes(title_text=f"Rank, {which} first ({_LENSES[lens]})", dtick=1)
    figure.update_yaxes(title_text="Head", autorange="reversed", type="category")
    screen = (_CELL * k + 170, 30 * len(rows) + 150)
    medium.lay_out(figure, title, screen=screen, height=18 * len(rows), colours="probability (0 to 1)")
    return figure


def _cut(token: str, letters: int) -> str:
    return markup(token if len(token) <= letters else token[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}")
