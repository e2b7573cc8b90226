"""Analyses: each takes adapters, scores or evaluations, and gives a small result that becomes a table or a figure."""

from lofit_lens.analysis.attribution import OffsetAttribution, attribute_offsets
from lofit_lens.analysis.doses import DoseResponse, dose_response
from lofit_lens.analysis.geometry import OffsetGeometry, cosine_null, offset_geometry
from lofit_lens.analysis.head_activations import HeadActivations, collect_head_activations
from lofit_lens.analysis.head_transfers import HeadTransfer, head_transfer
from lofit_lens.analysis.mixtures import Mixture, mixture
from lofit_lens.analysis.overlap import HeadOverlap, head_overlap, intersections, layer_emd
from lofit_lens.analysis.plane import OffsetPlane, offset_plane
from lofit_lens.analysis.reading import OffsetReading, read_offsets
from lofit_lens.analysis.sweeps import Sweep, sweep
from lofit_lens.analysis.token_effects import AttentionPatterns, TokenEffects, attention_patterns, token_effects
from lofit_lens.analysis.transfer import TransferTable, effects_on_tasks

__all__ = [
    "AttentionPatterns",
    "DoseResponse",
    "HeadActivations",
    "HeadOverlap",
    "HeadTransfer",
    "Mixture",
    "OffsetAttribution",
    "OffsetGeometry",
    "OffsetPlane",
    "OffsetReading",
    "Sweep",
    "TokenEffects",
    "TransferTable",
    "attention_patterns",
    "attribute_offsets",
    "collect_head_activations",
    "cosine_null",
    "dose_response",
    "effects_on_tasks",
    "head_overlap",
    "head_transfer",
    "intersections",
    "layer_emd",
    "mixture",
    "offset_geometry",
    "offset_plane",
    "read_offsets",
    "sweep",
    "token_effects",
]
