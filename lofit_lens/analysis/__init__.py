"""Pure functions of adapters, scores and evaluations; each gives a small result that `plots` can draw."""

from lofit_lens.analysis.transfer import TransferTable

__all__ = ["TransferTable"]
