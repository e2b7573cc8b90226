"""Figures: each takes a result and gives a `plotly.graph_objects.Figure`; no model, no files, no state."""

from lofit_lens.plots.heads import cumulative_scores, head_heatmap, head_heatmaps, layer_histogram
from lofit_lens.plots.overlap import overlap_matrix, shared_heads
from lofit_lens.plots.transfer import transfer_matrix

__all__ = [
    "cumulative_scores",
    "head_heatmap",
    "head_heatmaps",
    "layer_histogram",
    "overlap_matrix",
    "shared_heads",
    "transfer_matrix",
]
