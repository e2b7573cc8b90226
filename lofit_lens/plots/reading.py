"""What offsets say: a row of tokens for each head."""

import plotly.graph_objects as go

from lofit_lens.analysis.reading import Lens, OffsetReading, Side
from lofit_lens.plots.template import SEQUENTIAL, TEMPLATE, markup

#: Characters of a token that fit a cell; the hover text has all of them.
CELL = 10


def offset_tokens(
    reading: OffsetReading, *, lens: Lens = "with norm", side: Side = "top", k: int = 10, title: str = ""
) -> go.Figure:
    """The `k` likeliest (or unlikeliest) tokens of each head's offset in order, coloured by probability.

    With 8 heads and 10 tokens the text is readable at the width of a two-column page.

    Args:
        reading: heads become rows, in its order.
        lens: which of those it was read with.
        side: the likeliest or the unlikeliest tokens.
        k: columns, at most as many as were read.
        title: of the figure.

    Raises:
        ValueError: a lens, side or k that was not read.
    """
    rows = reading.of(lens, side, k)
    figure = go.Figure(
        go.Heatmap(
            z=[[read.probability for read in row] for row in rows.values()],
            x=list(range(1, k + 1)),
            y=[head.label for head in rows],
            text=[[_cell(read.token) for read in row] for row in rows.values()],
            texttemplate="%{text}",
            textfont={"size": 12},
            customdata=[[[markup(read.token), read.logit] for read in row] for row in rows.values()],
            hovertemplate=(
                "%{y}, rank %{x}<br>%{customdata[0]}<br>logit %{customdata[1]:.3f}<br>probability %{z:.3g}<extra></extra>"
            ),
            colorscale=SEQUENTIAL,
            zmin=0,
            colorbar={
                "title": {"text": "probability (0 to 1)", "side": "right"},
                "thickness": 14,
                "exponentformat": "power",
            },
            xgap=1,
            ygap=1,
        )
    )
    figure.update_xaxes(title_text=f"Rank ({'likeliest' if side == 'top' else 'unlikeliest'} first)", dtick=1)
    figure.update_yaxes(title_text="Head", title_standoff=12, autorange="reversed", type="category")
    figure.update_layout(template=TEMPLATE, title_text=title, width=72 * k + 170, height=30 * len(rows) + 150)
    return figure


def _cell(token: str) -> str:
    return markup(token if len(token) <= CELL else token[: CELL - 1] + "\N{HORIZONTAL ELLIPSIS}")
