"""Which tasks share heads: a matrix of any measure of `analysis.head_overlap`, and an UpSet figure of the sets themselves."""

import math
from collections.abc import Iterable, Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.analysis.overlap import HeadOverlap, Measure, intersections
from lofit_lens.plots.template import DIVERGING, INK, MUTED, ROW, SEQUENTIAL, Columns, Medium, markup

#: What a colour bar says, and the range that its colours span (None: that of the values).
_MEASURES: dict[Measure, tuple[str, tuple[float, float] | None]] = {
    "overlap": ("shared heads (share of K)", (0.0, 1.0)),
    "jaccard": ("Jaccard index", (0.0, 1.0)),
    "emd": ("distance between layers (layers)", None),
    "rank_correlation": ("rank correlation of scores", (-1.0, 1.0)),
}
#: A cell is marked where q is below this.
_ALIKE = 0.05


def overlap_matrix(
    overlap: HeadOverlap, measure: Measure = "overlap", *, title: str = "", columns: Columns | None = None
) -> go.Figure:
    """Tasks by tasks, with a task's own seeds on the diagonal, as in the paper's Figure 6.

    Marked `*` where tasks are more alike than by chance under the null that keeps layers (q < 0.05); for `emd`, which layers
    alone decide, under the uniform one.

    Args:
        overlap: of tasks.
        measure: what of it.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: no such measure, or number of columns.
    """
    medium = Medium.of(columns)
    null = "uniform" if measure == "emd" else "layers"
    statistics = ("value", "expected_uniform", "p_uniform", "q_uniform", "expected_layers", "p_layers", "q_layers")
    told = {column: overlap.matrix(measure, column) for column in statistics}
    values, q = told["value"], told[f"q_{null}"]
    label, span = _MEASURES[measure]
    names = list(overlap.names)
    marked = [[_cell_text(values.loc[a, b], q.loc[a, b]) for b in names] for a in names]
    hover = [["<br>".join(f"{key} {_number(told[key].loc[a, b])}" for key in statistics) for b in names] for a in names]
    low, high = span or (0.0, float(values.max(axis=None, skipna=True)))
    figure = go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(value) else value for value in row] for row in values.to_numpy().tolist()],
            x=[markup(name) for name in names],
            y=[markup(name) for name in names],
            text=marked,
            texttemplate="%{text}",
            customdata=hover,
            hovertemplate="%{y} and %{x}<br>%{customdata}<extra></extra>",
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed")
    scale = {"colorscale": DIVERGING if low < 0 else SEQUENTIAL, "reversescale": measure == "emd", "cmin": low, "cmax": high}
    figure.update_layout(coloraxis=scale, plot_bgcolor=MUTED)
    screen = (90 * len(names) + 250, 90 * len(names) + 130)
    medium.lay_out(figure, title, screen=screen, height=max(150, 22 * len(names)), below=ROW, colours=label)
    return figure


def _cell_text(value: float, q: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}{'*' if q < _ALIKE else ''}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def shared_heads(
    sets: Mapping[str, Iterable[tuple[int, int]]], *, title: str = "", columns: Columns | None = None
) -> go.Figure:
    """An UpSet figure (Lex et al. 2014): how many heads are in just these sets and no other, most first.

    Args:
        sets: heads by name, such as each task's; drawn from the top down.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: no heads at all, or another number of columns.
    """
    medium = Medium.of(columns)
    given = {markup(name): tuple(heads) for name, heads in sets.items()}
    table = intersections(given)
    if table.empty:
        raise ValueError("got no heads to draw; wanted at least one set with at least one head")
    names, places = list(given), list(range(len(table)))
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.03)
    told = zip(table["sets"], table["heads"], strict=True)
    labels = [f"{' and '.join(members)}<br>{', '.join(heads)}" for members, heads in told]
    counts = table["count"].tolist()
    bars = go.Bar(
        x=places, y=counts, text=counts, textposition="outside", marker_color=INK, hovertext=labels, hoverinfo="text+y"
    )
    figure.add_trace(bars, row=1, col=1)
    size = 11 if medium.width is None else 7
    everywhere = [(place, name) for place in places for name in names]
    figure.add_trace(_dots(everywhere, MUTED, size), row=2, col=1)
    for place, members in zip(places, table["sets"], strict=True):
        ordered = [(place, name) for name in names if name in members]
        figure.add_trace(_dots(ordered, INK, size, mode="markers+lines"), row=2, col=1)
    figure.update_yaxes(title_text="Heads", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names[::-1], ticktext=[f"{n} ({len(given[n])})" for n in names],
        tickvals=names, ticks="", row=2, col=1,
    )  # fmt: skip
    figure.update_xaxes(showticklabels=False, ticks="")
    figure.update_layout(showlegend=False)
    screen = (max(420, 46 * len(table) + 220), 230 + 45 * len(names))
    medium.lay_out(figure, title, screen=screen, height=110 + 18 * len(names), below=0)
    return figure


def _dots(places: list[tuple[int, str]], colour: str, size: int, mode: str = "markers") -> go.Scatter:
    return go.Scatter(
        x=[column for column, _ in places],
        y=[name for _, name in places],
        mode=mode,
        marker={"size": size, "color": colour},
        line={"color": colour, "width": 2},
        hoverinfo="skip",
    )
