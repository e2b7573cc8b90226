"""What offsets add to right answers directly: a dot and an interval for each head."""

import numpy as np
import plotly.graph_objects as go

from lofit_lens.analysis.attribution import OffsetAttribution
from lofit_lens.plots.template import REFERENCE, RIGHT, ROW, Columns, Medium

#: Pixels of a head's row, on a screen and in a paper.
_ROW, _PAPER_ROW = 17, 11


def offset_attribution(found: OffsetAttribution, *, k: int = 30, title: str = "", columns: Columns | None = None) -> go.Figure:
    """The mean over examples of each head's direct logit attribution with its 95 % interval, largest on top.

    Args:
        found: of one adapter.
        k: how many heads at most: those whose means lie furthest from 0.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: fewer than one head, or another number of columns.
    """
    medium = Medium.of(columns)
    if k < 1:
        raise ValueError(f"got k={k}; wanted at least 1 head")
    frame = found.to_frame()
    furthest = np.argsort(-np.abs(np.asarray(frame["mean"])), kind="stable")[:k]
    shown = frame.iloc[furthest].sort_values("mean", ascending=False, kind="stable")
    figure = go.Figure(
        go.Scatter(
            x=shown["mean"].tolist(),
            y=shown["head"].tolist(),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (shown["high"] - shown["mean"]).tolist(),
                "arrayminus": (shown["mean"] - shown["low"]).tolist(),
                "thickness": 1.2,
                "width": 0,
            },
            mode="markers",
            marker={"color": RIGHT, "size": medium.marker},
            customdata=shown[["low", "high", "n"]].to_numpy().tolist(),
            hovertemplate=(
                "%{y}<br>%{x:.3f} logits (n = %{customdata[2]:.0f})<br>"
                "[%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>"
            ),
        )
    )
    figure.add_vline(0, line={"color": REFERENCE, "width": 1})
    figure.update_xaxes(
        title_text=f"Added directly to the right answer's logit,<br>less that of the {found.baseline} (n = {frame['n'].max()})"
    )
    which = "Head" if len(shown) == len(frame) else f"Head ({len(shown)} of {len(frame)}, furthest from 0)"
    figure.update_yaxes(title_text=which, range=[len(shown) - 0.5, -0.5], type="category", dtick=1, tickfont_size=medium.small)
    screen = (520, _ROW * len(shown) + 160)
    medium.lay_out(figure, title, screen=screen, height=_PAPER_ROW * len(shown), below=3 * ROW)
    return figure
