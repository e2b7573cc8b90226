"""The transfer matrix: rows lend heads that columns learn on, or are adapters that columns are judged under."""

import plotly.graph_objects as go

from lofit_lens.analysis.transfer import TransferTable
from lofit_lens.plots.template import ROW, SEQUENTIAL, Columns, Medium, markup, words

#: Pixels in a paper that a value and its interval need, and a letter of a label.
_INTERVAL, _LETTER = 60, 5.5


def transfer_matrix(table: TransferTable, *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """Metric of each task (column) with what comes from each source (row), its heads or an adapter, with 95 % intervals.

    A task's own column is comparable from row to row; columns of different metrics are not comparable with each other. In a
    paper, intervals are left out where cells have no room for them.

    Args:
        table: of evaluations.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: no cells, or another number of columns.
    """
    medium = Medium.of(columns)
    if not table.sources or not table.targets:
        raise ValueError("the table has no cells to draw; wanted at least one source and one target")
    cells = [[table.evaluations[source, target] for target in table.targets] for source in table.sources]
    intervals = [[cell.interval() for cell in row] for row in cells]
    sources, targets = ([markup(name) for name in names] for names in (table.sources, table.targets))
    fits = medium.width is None or _cell_width(table, medium.width) >= _INTERVAL
    figure = go.Figure(
        go.Heatmap(
            z=[[cell.value for cell in row] for row in cells],
            x=targets,
            y=sources,
            text=[
                [f"{cell.value:.2f}<br>[{low:.2f}, {high:.2f}]" for cell, (low, high) in zip(row, bounds, strict=True)]
                for row, bounds in zip(cells, intervals, strict=True)
            ],
            texttemplate="%{text}" if fits else "%{z:.2f}",
            textfont=None if medium.width is None else {"size": medium.small},
            customdata=[[[cell.metric, cell.n] for cell in row] for row in cells],
            hovertemplate=(
                f"task %{{x}}, {table.rows} %{{y}}<br>"
                "%{customdata[0]} %{z:.3f} (n = %{customdata[1]})<br>%{text}<extra></extra>"
            ),
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
        )
    )
    metrics = [words(table.evaluations[table.sources[0], target].metric) for target in table.targets]
    space = " " if medium.width is None else "<br>"
    figure.update_xaxes(
        title_text="Task learned" if table.rows == "heads of" else "Task",
        ticktext=[f"{target}{space}({metric})" for target, metric in zip(targets, metrics, strict=True)],
        tickvals=targets,
    )
    figure.update_yaxes(title_text=table.rows.capitalize(), autorange="reversed")
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1})
    screen = (180 * len(table.targets) + 260, 80 * len(table.sources) + 160)
    height = 30 * len(table.sources)
    medium.lay_out(figure, title, screen=screen, height=height, below=3 * ROW, colours="metric (0 to 1)")
    return figure


def _cell_width(table: TransferTable, width: int) -> float:
    labels = _LETTER * max(map(len, table.sources)) + 3 * ROW
    return (width - labels) / len(table.targets)
