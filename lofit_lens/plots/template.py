"""The look of every figure, applied to each figure alone and never globally."""

import plotly.graph_objects as go

#: Sequential, for quantities that cannot be negative; perceptually uniform, safe for colour-blind readers.
SEQUENTIAL = "Viridis"
#: The outline of what is selected: stands out on every colour of the scale, in print too.
SELECTED = "#d55e00"
FONT = {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#222222"}

TEMPLATE = go.layout.Template(
    layout={
        "font": FONT,
        "title": {"x": 0.5, "xanchor": "center", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 30, "t": 70, "b": 55},
        "xaxis": {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 4, "automargin": True},
        "yaxis": {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 4, "automargin": True},
    }
)
