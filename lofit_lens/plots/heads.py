"""Head maps: a score for every head, layer 0 on top, selected heads outlined."""

import math
from collections.abc import Iterable, Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.heads import Head, HeadScores, checked_heads
from lofit_lens.plots.template import SELECTED, SEQUENTIAL, TEMPLATE


def head_heatmap(scores: HeadScores, selected: Iterable[tuple[int, int]] = (), *, title: str = "") -> go.Figure:
    """Layer by head heat map of one set of scores.

    Args:
        scores: norms or other quantities that are not negative; layers without attention (NaN) stay blank.
        selected: heads to outline.
        title: of the figure.
    """
    return head_heatmaps({"": scores}, {"": selected}, title=title)


def head_heatmaps(
    scores: Mapping[str, HeadScores],
    selected: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    *,
    title: str = "",
) -> go.Figure:
    """Heat maps side by side, on one colour scale, so that they can be compared.

    Args:
        scores: for each panel's name. All of one model and one quantity.
        selected: for a panel's name, the heads to outline.
        title: of the figure.

    Raises:
        ValueError: nothing to draw, scores of different shapes or quantities, or heads to outline that are in no panel.
    """
    if not scores:
        raise ValueError("no scores to draw; wanted at least one named HeadScores")
    kinds = {(tuple(panel.values.shape), panel.quantity) for panel in scores.values()}
    if len(kinds) > 1:
        raise ValueError(f"panels of one figure share axes and a colour scale, but these differ in shape or quantity: {kinds}")
    (n_layers, n_heads), quantity = next(iter(kinds))
    outlines = {name: {Head(*head) for head in heads} for name, heads in (selected or {}).items()}
    for name, heads in outlines.items():
        if name not in scores:
            raise ValueError(f"heads to outline in a panel {name!r} that is not drawn; panels are {list(scores)}")
        if heads:
            checked_heads(heads, n_layers, n_heads)
    figure = make_subplots(1, len(scores), subplot_titles=list(scores), shared_yaxes=True, horizontal_spacing=0.04)
    for column, (name, panel) in enumerate(scores.items(), start=1):
        outlined = outlines.get(name, set())
        figure.add_trace(_heatmap(panel, outlined), row=1, col=column)
        for layer, index in sorted(outlined):
            figure.add_shape(
                type="rect", x0=index - 0.5, x1=index + 0.5, y0=layer - 0.5, y1=layer + 0.5,
                line={"color": SELECTED, "width": 2}, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title_text="Head", tickmode="array", tickvals=list(range(0, n_heads, max(1, n_heads // 8))))
    figure.update_yaxes(range=[n_layers - 0.5, -0.5])
    figure.update_yaxes(title_text="Layer", row=1, col=1)
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        coloraxis={"colorscale": SEQUENTIAL, "colorbar": {"title": {"text": quantity, "side": "right"}, "thickness": 14}},
        width=max(420, 300 * len(scores) + 120),
        height=max(320, 15 * n_layers + 150),
    )
    return figure


def _heatmap(panel: HeadScores, outlined: set[Head]) -> go.Heatmap:
    ranks = {tuple(head): place for place, head in enumerate(panel.rank(), start=1)}
    values = panel.values.tolist()
    hover = [
        [
            f"L{layer}H{index}<br>rank {ranks.get((layer, index), '-')}{' (selected)' if (layer, index) in outlined else ''}"
            for index in range(len(row))
        ]
        for layer, row in enumerate(values)
    ]
    return go.Heatmap(
        z=[[None if math.isnan(value) else value for value in row] for row in values],
        text=hover,
        hovertemplate="%{text}<br>%{z:.4g}<extra></extra>",
        coloraxis="coloraxis",
    )
