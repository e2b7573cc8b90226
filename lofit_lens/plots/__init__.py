"""Figures: each takes a result and gives a `plotly.graph_objects.Figure`; no model, no files, no state."""

from lofit_lens.plots.heads import head_heatmap, head_heatmaps
from lofit_lens.plots.transfer import transfer_matrix

__all__ = ["head_heatmap", "head_heatmaps", "transfer_matrix"]
