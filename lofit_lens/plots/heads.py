"""Head maps: a score for every head, layer 0 on top, selected heads outlined; and where in depth a selection lies."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.heads import Head, HeadScores, checked_heads
from lofit_lens.plots.template import (
    DIVERGING,
    LEGEND_BELOW,
    LINES,
    MUTED,
    REFERENCE,
    ROW,
    SELECTED,
    SEQUENTIAL,
    Columns,
    Medium,
    line_styles,
    markup,
)

#: Pixels in a paper: a panel is no narrower than its name, a head no narrower than its outline lets one see its colour.
_PANEL, _HEAD, _LAYER = 80, 6, 7
#: And between rows of panels are the ticks of the upper ones and the names of the lower ones.
_GAP = 36


def head_heatmap(
    scores: HeadScores,
    selected: Iterable[tuple[int, int]] = (),
    *,
    heads_per_kv: int | None = None,
    title: str = "",
    columns: Columns | None = None,
) -> go.Figure:
    """Layer by head heat map of one set of scores; see `head_heatmaps`."""
    return head_heatmaps({"": scores}, {"": selected}, heads_per_kv=heads_per_kv, title=title, columns=columns)


def head_heatmaps(
    scores: Mapping[str, HeadScores],
    selected: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    *,
    heads_per_kv: int | None = None,
    title: str = "",
    columns: Columns | None = None,
) -> go.Figure:
    """Heat maps side by side, on one colour scale, so that they can be compared; in a paper, as many as a row has room for.

    Colours of signed scores are centred at 0. Heads without a score are grey: not edited, say, or no attention there.

    Args:
        scores: for each panel's name. All of one model and one quantity.
        selected: for a panel's name, the heads to outline.
        heads_per_kv: query heads that share a key and value head; more than one, and lines part the groups. None is what the
            scores know of it; of those that know nothing it is `model.cfg.n_heads // model.cfg.n_key_value_heads`.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: nothing to draw, scores of different shapes or quantities, heads to outline that are in no panel, groups
            that the heads cannot be parted into, or another number of columns.
    """
    medium = Medium.of(columns)
    outlines = {name: {Head(*head) for head in heads} for name, heads in (selected or {}).items()}
    n_layers, n_heads, quantity = _checked(scores, outlines)
    heads_per_kv = _checked_groups(heads_per_kv, n_heads, scores.values())
    width = _PANEL * len(scores) if medium.width is None else medium.width - 50
    per_row = len(scores) if medium.width is None else max(1, min(len(scores), width // max(_PANEL, _HEAD * n_heads)))
    n_rows, height = math.ceil(len(scores) / per_row), max(60, _LAYER * n_layers)
    gap = _GAP / (n_rows * height + _GAP * (n_rows - 1))
    figure = make_subplots(
        n_rows, per_row, subplot_titles=[*map(markup, scores)], shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=gap
    )
    for place, (name, panel) in enumerate(scores.items()):
        row, column = (1 + at for at in divmod(place, per_row))
        _draw_panel(figure, panel, outlines.get(name, set()), heads_per_kv, medium, row=row, col=column)
    step = max(1, n_heads // 8) if medium.width is None else math.ceil(25 * n_heads * per_row / width)
    figure.update_xaxes(tickmode="array", tickvals=list(range(0, n_heads, step)))
    figure.update_yaxes(range=[n_layers - 0.5, -0.5])
    figure.update_xaxes(title_text="Head", row=n_rows)
    figure.update_yaxes(title_text="Layer", col=1)
    colours = markup(quantity)
    if any(panel.values.isnan().any() for panel in scores.values()):
        colours += "; grey: no score"
    names = ROW if any(scores) else 0
    figure.update_layout(coloraxis=colour_scale(scores.values()), plot_bgcolor=MUTED)
    screen = (max(420, 300 * len(scores) + 120), max(320, 15 * n_layers + 150))
    medium.lay_out(figure, title, screen=screen, height=n_rows * height + _GAP * (n_rows - 1), above=names, colours=colours)
    return figure


def _checked(scores: Mapping[str, HeadScores], outlines: Mapping[str, set[Head]]) -> tuple[int, int, str]:
    """Layers, heads and quantity, which all panels have in common."""
    if not scores:
        raise ValueError("no scores to draw; wanted at least one named HeadScores")
    kinds = {(tuple(panel.values.shape), panel.quantity) for panel in scores.values()}
    if len(kinds) > 1:
        raise ValueError(f"panels of one figure share axes and a colour scale, but these differ in shape or quantity: {kinds}")
    (n_layers, n_heads), quantity = next(iter(kinds))
    for name, heads in outlines.items():
        if name not in scores:
            raise ValueError(f"heads to outline in a panel {name!r} that is not drawn; panels are {list(scores)}")
        if heads:
            checked_heads(heads, n_layers, n_heads)
    return n_layers, n_heads, quantity


def _draw_panel(
    figure: go.Figure, panel: HeadScores, outlined: set[Head], heads_per_kv: int, medium: Medium, *, row: int, col: int
) -> None:
    figure.add_trace(_heatmap(panel, outlined, heads_per_kv), row=row, col=col)
    n_heads = panel.values.shape[1]
    for edge in range(heads_per_kv, n_heads, heads_per_kv) if heads_per_kv > 1 else ():
        figure.add_vline(edge - 0.5, line={"color": "white", "width": 1}, row=row, col=col)  # pyright: ignore[reportArgumentType]
    for layer, index in sorted(outlined):
        figure.add_shape(
            type="rect", x0=index - 0.5, x1=index + 0.5, y0=layer - 0.5, y1=layer + 0.5,
            line={"color": SELECTED, "width": 2 if medium.width is None else 1}, row=row, col=col,
        )  # fmt: skip


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


def layer_histogram(
    selected: Mapping[str, Iterable[tuple[int, int]]], n_layers: int, *, title: str = "", columns: Columns | None = None
) -> go.Figure:
    """How many of each selection's heads are in each layer, one panel below another (the paper's Figure 3).

    Args:
        selected: heads by name.
        n_layers: of the model.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: no selection, a head in no such layer, or another number of columns.
    """
    medium = Medium.of(columns)
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
    figure.update_layout(showlegend=False, bargap=0.15)
    medium.lay_out(figure, title, screen=(520, 120 * len(counts) + 150), height=70 * len(counts), above=ROW)
    return figure


def cumulative_scores(scores: Mapping[str, HeadScores], *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """What share of all scores the K best heads hold, for every K: how few heads carry the whole.

    A line says what they would hold if every head had the same score.

    Args:
        scores: by name; norms or other quantities that are not negative.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: nothing to draw, negative scores, all of them 0, or another number of columns.
    """
    medium = Medium.of(columns)
    if not scores:
        raise ValueError("no scores to draw; wanted at least one named HeadScores")
    figure = go.Figure()
    looks = line_styles(list(scores), medium)
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
    most = max(len(panel.rank()) for panel in scores.values())
    figure.add_scatter(
        x=[0, most], y=[0, 1], name="all heads alike", mode="lines", line={"color": REFERENCE, "width": 1}, hoverinfo="skip"
    )
    figure.update_xaxes(title_text="K, best heads first", rangemode="tozero")
    figure.update_yaxes(title_text="share of all scores", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(legend=LEGEND_BELOW if medium.width else None)
    medium.lay_out(figure, title, screen=(520, 380), height=170, below=(3 + len(scores) // 2) * ROW)
    return figure
