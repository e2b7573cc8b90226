"""Dose-response curves: the metric above, what ordinary text pays below, on one axis of strength."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lofit_lens.analysis.doses import DoseResponse
from lofit_lens.plots.template import LEGEND_BELOW, NARROW, REFERENCE, ROW, Columns, Medium, line_styles, words

_COSTS = {"rise_in_cross_entropy": "rise in cross-entropy", "kl": "KL from the base model"}


def dose_curves(response: DoseResponse, *, title: str = "", columns: Columns | None = None) -> go.Figure:
    """The task's metric at each dose and, where they were measured, the side effects below it, with bands of 95 % intervals.

    Lines mark dose 0, the base model, and dose 1, the edit as it was fitted.

    Args:
        response: of one edit.
        title: of the figure.
        columns: of a paper that the figure is laid out for; None is a screen.

    Raises:
        ValueError: another number of columns.
    """
    medium = Medium.of(columns)
    frame = response.to_frame()
    metric, n = words(response.evaluations[0].metric), response.evaluations[0].n
    names = {"value": metric, **(_COSTS if response.side_effects else {})}
    n_rows = 2 if response.side_effects else 1
    figure = make_subplots(n_rows, 1, shared_xaxes=True, vertical_spacing=0.06)
    styles = line_styles(list(names), medium)
    for column, name in names.items():
        is_cost = column != "value"
        low, high = (f"{column}_low", f"{column}_high") if is_cost else ("low", "high")
        of_what = f"nats a token (n = {len(response.side_effects[0].kl)} texts)" if is_cost else f"(n = {n})"
        figure.add_trace(_band(frame, low, high, styles[column]["line"]["color"]), row=1 + is_cost, col=1)
        figure.add_scatter(
            x=frame["dose"].tolist(),
            y=frame[column].tolist(),
            customdata=frame[[low, high]].to_numpy().tolist(),
            name=name,
            mode="lines+markers",
            showlegend=is_cost,
            hovertemplate=(
                f"dose %{{x}}<br>{name} %{{y:.3f}} {of_what}<br>[%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>"
            ),
            **styles[column],
            row=1 + is_cost,
            col=1,
        )
    for dose, meaning in ((0, "base model"), (1, "as fitted")):
        figure.add_vline(dose, line={"color": REFERENCE, "width": 1, "dash": "dot"}, row="all")
        figure.add_annotation(
            x=dose, y=1, yref="y domain", yanchor="bottom", text=meaning, showarrow=False,
            font={"size": medium.small, "color": REFERENCE},
        )  # fmt: skip
    figure.update_xaxes(title_text="Dose (1 = the edit as fitted)", row=n_rows, col=1)
    figure.update_yaxes(title_text=f"{metric} (0 to 1)", row=1, col=1)
    if response.side_effects:
        figure.update_yaxes(title_text="nats a token", row=2, col=1)
    figure.update_layout(legend=LEGEND_BELOW)
    screen = (NARROW, 130 + 190 * n_rows)
    medium.lay_out(figure, title, screen=screen, height=130 * n_rows, above=ROW, below=(1 + n_rows) * ROW)
    return figure


def _band(frame: pd.DataFrame, low: str, high: str, colour: str) -> go.Scatter:
    doses, lows, highs = (frame[column].tolist() for column in ("dose", low, high))
    return go.Scatter(
        x=doses + doses[::-1],
        y=highs + lows[::-1],
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )
