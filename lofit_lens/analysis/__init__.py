"""Analyses: each takes adapters, scores or evaluations, and gives a small result that becomes a table or a figure."""

from lofit_lens.analysis.overlap import HeadOverlap, head_overlap, intersections, layer_emd
from lofit_lens.analysis.transfer import TransferTable, effects_on_tasks

__all__ = ["HeadOverlap", "TransferTable", "effects_on_tasks", "head_overlap", "intersections", "layer_emd"]
