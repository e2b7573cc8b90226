"""The look of every figure, applied to each figure alone and never globally."""

import plotly.graph_objects as go

INK = "#222222"
#: Sequential, for quantities that cannot be negative; perceptually uniform, safe for colour-blind readers.
SEQUENTIAL = "Viridis"
#: For signed quantities, centred at 0; blue and red are told apart by colour-blind readers, red and green are not.
DIVERGING = "RdBu"
#: Lines and bars, in turn: Okabe and Ito's colours, and dashes for print without colour.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("solid", "dash", "dot", "dashdot")
#: What is not there: a layer without attention, a set that a head is not in.
MUTED = "#dddddd"
#: The outline of what is selected: stands out on every colour of the scale, in print too.
SELECTED = "#d55e00"
FONT = {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK}

_AXIS = {
    "showgrid": False,
    "zeroline": False,
    "showline": True,
    "linecolor": "#888888",
    "ticks": "outside",
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": FONT,
        "title": {"x": 0.5, "xanchor": "center", "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 30, "t": 70, "b": 55},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
