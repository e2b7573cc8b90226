"""Head maps: a score for every head, layer 0 on top, selected heads outlined; and where in depth a selection lies."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.heads import Head, HeadScores, checked_heads
from lofit_lens.plots.template import DIVERGING, LINES, MUTED, SELECTED, SEQUENTIAL, TEMPLATE, line_styles, markup


def head_heatmap(
    scores: HeadScores, selected: Iterable[tuple[int, int]] = (), *, heads_per_kv: int | None = None, title: str = ""
) -> go.Figure:
    """Layer by head heat map of one set of scores; see `head_heatmaps`."""
    return head_heatmaps({"": scores}, {"": selected}, heads_per_kv=heads_per_kv, title=title)


def head_heatmaps(
    scores: Mapping[str, HeadScores],
    selected: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    *,
    heads_per_kv: int | None = None,
    title: str = "",
) -> go.Figure:
    """Heat maps side by side, on one colour scale, so that they can be compared.

    Colours of signed scores are centred at 0. Layers without attention are grey.

    Args:
        scores: for each panel's name. All of one model and one quantity.
        selected: for a panel's name, the heads to outline.
        heads_per_kv: query heads that share a key and value head; more than one, and lines part the groups. None is what the
            scores know of it; of those that know nothing it is `model.cfg.n_heads // model.cfg.n_key_value_heads`.
        title: of the figure.

    Raises:
        ValueError: nothing to draw, scores of different shapes or quantities, heads to outline that are in no panel, or groups
            that the heads cannot be parted into.
    """
    if not scores:
        raise ValueError("no scores to draw; wanted at least one named HeadScores")
    kinds = {(tuple(panel.values.shape), panel.quantity) for panel in scores.values()}
    if len(kinds) > 1:
        raise ValueError(f"panels of one figure share axes and a colour scale, but these differ in shape or quantity: {kinds}")
    (n_layers, n_heads), quantity = next(iter(kinds))
    heads_per_kv = _checked_groups(heads_per_kv, n_heads, scores.values())
    outlines = {name: {Head(*head) for head in heads} for name, heads in (selected or {}).items()}
    for name, heads in outlines.items():
        if name not in scores:
            raise ValueError(f"heads to outline in a panel {name!r} that is not drawn; panels are {list(scores)}")
        if heads:
            checked_heads(heads, n_layers, n_heads)
    figure = make_subplots(1, len(scores), subplot_titles=[*map(markup, scores)], shared_yaxes=True, horizontal_spacing=0.04)
    for column, (name, panel) in enumerate(scores.items(), start=1):
        outlined = outlines.get(name, set())
        figure.add_trace(_heatmap(panel, outlined, heads_per_kv), row=1, col=column)
        for edge in range(heads_per_kv, n_heads, heads_per_kv) if heads_per_kv > 1 else ():
            figure.add_vline(edge - 0.5, line={"color": "white", "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
        for layer, index in sorted(outlined):
            figure.add_shape(
                type="rect", x0=index - 0.5, x1=index + 0.5, y0=layer - 0.5, y1=layer + 0.5,
                line={"color": SELECTED, "width": 2}, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title_text="Head", tickmode="array", tickvals=list(range(0, n_heads, max(1, n_heads // 8))))
    figure.update_yaxes(range=[n_layers - 0.5, -0.5])
    figure.update_yaxes(title_text="Layer", row=1, col=1)
    colorbar = {"title": {"text": markup(quantity), "side": "right"}, "thickness": 14}
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        coloraxis={**colour_scale(scores.values()), "colorbar": colorbar},
        plot_bgcolor=MUTED,
        width=max(420, 300 * len(scores) + 120),
        height=max(320, 15 * n_layers + 150),
    )
    return figure


def _checked_groups(heads_per_kv: int | None, n_heads: int, panels: Iterable[HeadScores]) -> int:
    if heads_per_kv is None:
        return next((panel.heads_per_kv for panel in panels if panel.heads_per_kv), 1)
    if heads_per_kv < 1 or n_heads % heads_per_kv:
        raise ValueError(f"got heads_per_kv={heads_per_kv} for {n_heads} heads; wanted one that divides them")
    return heads_per_kv


def colour_scale(panels: Iterable[HeadScores]) -> dict[str, Any]:
    """One scale for all of these panels, whether or not they are in one figure: `colorscale`, `cmin`, `cmax`.

    Scores below 0 are signed, even if those who made them did not say so.
    """
    panels = list(panels)
    values = [panel[head] for panel in panels for head in panel.rank()]
    lowest = min(values, default=0.0)
    if lowest >= 0 and not any(panel.is_signed for panel in panels):
        return {"colorscale": SEQUENTIAL, "cmin": lowest, "cmax": max(values, default=1.0)}
    largest = max(map(abs, values), default=0.0) or 1.0
    return {"colorscale": DIVERGING, "cmin": -largest, "cmax": largest}


def _heatmap(panel: HeadScores, outlined: set[Head], heads_per_kv: int) -> go.Heatmap:
    ranks = {tuple(head): place for place, head in enumerate(panel.rank(), start=1)}

    def told(head: Head, value: float) -> str:
        if math.isnan(value):
            return f"{head.label}<br>no attention, or not scored"
        group = f", KV head {head.index // heads_per_kv}" if heads_per_kv > 1 else ""
        return f"{head.label}{group}<br>rank {ranks[head]}{' (selected)' if head in outlined else ''}<br>{value:.4g}"

    rows = panel.values.tolist()
    return go.Heatmap(
        z=[[None if math.isnan(value) else value for value in row] for row in rows],
        text=[[told(Head(layer, index), value) for index, value in enumerate(row)] for layer, row in enumerate(rows)],
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=True,
        coloraxis="coloraxis",
    )


def layer_histogram(selected: Mapping[str, Iterable[tuple[int, int]]], n_layers: int, *, title: str = "") -> go.Figure:
    """How many of each selection's heads are in each layer, one panel below another (the paper's Figure 3).

    Args:
        selected: heads by name.
        n_layers: of the model.
        title: of the figure.

    Raises:
        ValueError: no selection, or a head in no such layer.
    """
    if not selected:
        raise ValueError("no selection to draw; wanted at least one named set of heads")
    counts = {name: Counter(layer for layer, _ in heads) for name, heads in selected.items()}
    beyond = {layer for of_layer in counts.values() for layer in of_layer if not 0 <= layer < n_layers}
    if beyond:
        raise ValueError(f"got heads in the layers {sorted(beyond)}; wanted layers 0 to {n_layers - 1}")
    names, spacing = [markup(name) for name in counts], min(0.12, 0.36 / len(counts))
    figure = make_subplots(len(counts), 1, shared_xaxes=True, subplot_titles=names, vertical_spacing=spacing)
    layers = list(range(n_layers))
    for row, (name, of_layer) in enumerate(counts.items(), start=1):
        bars = go.Bar(
            x=layers,
            y=[of_layer[layer] for layer in layers],
            name=markup(name),
            marker_color=LINES[(row - 1) % len(LINES)][0],
            hovertemplate="layer %{x}: %{y} heads<extra>%{fullData.name}</extra>",
        )
        figure.add_trace(bars, row=row, col=1)
    figure.update_xaxes(title_text="Layer", row=len(counts), col=1)
    most = max(max(of_layer.values(), default=1) for of_layer in counts.values())
    figure.update_yaxes(title_text="Heads", range=[0, 1.08 * most], nticks=4)
    figure.update_layout(
        template=TEMPLATE, title_text=title, showlegend=False, width=520, height=120 * len(counts) + 150, bargap=0.15
    )
    return figure


def cumulative_scores(scores: Mapping[str, HeadScores], *, title: str = "") -> go.Figure:
    """What share of all scores the K best heads hold, for every K: how few heads carry the whole.

    Args:
        scores: by name; norms or other quantities that are not negative.
        title: of the figure.

    Raises:
        ValueError: nothing to draw, negative scores, or all of them 0.
    """
    if not scores:
        raise ValueError("no scores to draw; wanted at least one named HeadScores")
    figure = go.Figure()
    looks = line_styles(list(scores))
    for name, panel in scores.items():
        ranked = panel.rank()
        values = [panel[head] for head in ranked]
        total, least = math.fsum(values), min(values, default=0.0)
        if least < 0 or total <= 0:
            raise ValueError(f"got scores of {name!r} from {least:g} that sum to {total:g}; wanted none below 0, some above")
        figure.add_trace(
            go.Scatter(
                x=list(range(len(values) + 1)),
                y=[math.fsum(values[:k]) / total for k in range(len(values) + 1)],
                name=markup(name),
                mode="lines",
                line=looks[name]["line"],
                text=["none", *(head.label for head in ranked)],
                hovertemplate="K = %{x} (last: %{text})<br>%{y:.1%}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_xaxes(title_text="K, best heads first", rangemode="tozero")
    figure.update_yaxes(title_text="share of all scores", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(template=TEMPLATE, title_text=title, width=520, height=380)
    return figure
