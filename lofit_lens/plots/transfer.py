"""The transfer matrix: rows lend heads that columns learn on, or are adapters that columns are judged under."""

import plotly.graph_objects as go

from lofit_lens.analysis.transfer import TransferTable
from lofit_lens.plots.template import SEQUENTIAL, TEMPLATE, markup


def transfer_matrix(table: TransferTable, *, title: str = "") -> go.Figure:
    """Metric of each task (column) with what comes from each source (row), its heads or an adapter, with 95 % intervals.

    A task's own column is comparable from row to row; columns of different metrics are not comparable with each other.

    Raises:
        ValueError: no cells.
    """
    if not table.sources or not table.targets:
        raise ValueError("the table has no cells to draw; wanted at least one source and one target")
    cells = [[table.evaluations[source, target] for target in table.targets] for source in table.sources]
    intervals = [[cell.interval() for cell in row] for row in cells]
    sources, targets = ([markup(name) for name in names] for names in (table.sources, table.targets))
    figure = go.Figure(
        go.Heatmap(
            z=[[cell.value for cell in row] for row in cells],
            x=targets,
            y=sources,
            text=[
                [f"{cell.value:.2f}<br>[{low:.2f}, {high:.2f}]" for cell, (low, high) in zip(row, bounds, strict=True)]
                for row, bounds in zip(cells, intervals, strict=True)
            ],
            texttemplate="%{text}",
            customdata=[[[cell.metric, cell.n] for cell in row] for row in cells],
            hovertemplate=(
                f"task %{{x}}, {table.rows} %{{y}}<br>"
                "%{customdata[0]} %{z:.3f} (n = %{customdata[1]})<br>%{text}<extra></extra>"
            ),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "metric (0 to 1)", "side": "right"}, "thickness": 14},
            xgap=2,
            ygap=2,
        )
    )
    metrics = [table.evaluations[table.sources[0], target].metric for target in table.targets]
    figure.update_xaxes(
        title_text="Task learned" if table.rows == "heads of" else "Task",
        ticktext=[f"{target} ({metric})" for target, metric in zip(targets, metrics, strict=True)],
        tickvals=targets,
    )
    figure.update_yaxes(title_text=table.rows.capitalize(), autorange="reversed")
    figure.update_layout(
        template=TEMPLATE, title_text=title, width=180 * len(table.targets) + 260, height=80 * len(table.sources) + 160
    )
    return figure
