"""The figures of each kind of result, by the names of the tabs that they are in."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import plotly.graph_objects as go

from lofit_lens import analysis, plots
from lofit_lens.analysis.geometry import SPACES
from lofit_lens.analysis.overlap import MEASURES, Measure
from lofit_lens.analysis.reading import Lens, Side
from lofit_lens.heads import Head, HeadScores
from lofit_lens.outcomes import Evaluation
from lofit_lens.plots.template import INK, LEARNED, LINES, MUTED, REFERENCE
from lofit_lens.results import Result
from lofit_lens.side_effects import SideEffects

Drawn = go.Figure | plots.TokenView

#: What colours that were chosen for paper become on a dark page; all others stay.
IN_THE_DARK = {"white": "#1f2225", INK: "#e3e3df", LEARNED: "#ffffff", MUTED: "#3c4046", REFERENCE: "#a0a09b"}
#: Columns of a table of tokens.
MOST_TOKENS = 10


def _heads(scores: HeadScores) -> dict[str, Drawn]:
    return {"": plots.head_heatmap(scores, chosen_by(scores))}


def chosen_by(scores: HeadScores) -> tuple[Head, ...]:
    """The heads that were to be kept, if the scores know how many; none where that is more than there are."""
    settings = scores.made_by.get("settings")
    k = settings.get("k") if isinstance(settings, Mapping) else None
    with contextlib.suppress(ValueError):  # a method that only scored heads has its default, which suits larger models
        return () if k is None else scores.top(k)
    return ()


def _mixture(found: analysis.Mixture) -> dict[str, Drawn]:
    """As many tasks in a figure as lines can be told apart."""
    parts = [found.tasks[i : i + len(LINES)] for i in range(0, len(found.tasks), len(LINES))]
    return {", ".join(part): plots.mixture_curves(replace(found, tasks=part)) for part in parts}


def _sweep(found: analysis.Sweep) -> dict[str, Drawn]:
    first = next(iter(found.evaluations.values()))[0]
    return {"": plots.sweep_curves({first.task: found})}


def _overlap(found: analysis.HeadOverlap) -> dict[str, Drawn]:
    known: list[Measure] = [measure for measure in MEASURES if found.matrix(measure).notna().any(axis=None)]
    return {measure.replace("_", " "): plots.overlap_matrix(found, measure) for measure in known}


def _geometry(found: analysis.OffsetGeometry) -> dict[str, Drawn]:
    frame = found.to_frame()
    figures: dict[str, Drawn] = {}
    for space in SPACES:
        known = set(frame[(frame["space"] == space) & frame["cosine"].notna()]["direction"])
        if directions := [direction for direction in found.directions if direction in known]:
            figures[space] = plots.cosine_distribution(found, space, directions=directions)
    return figures


def _reading(found: analysis.OffsetReading) -> dict[str, Drawn]:
    n_read: dict[tuple[Lens, Side], int] = {}
    for read in found.tokens:
        n_read[read.lens, read.side] = max(read.rank, n_read.get((read.lens, read.side), 0))
    return {
        f"{lens}, {'likeliest' if side == 'top' else 'unlikeliest'}": plots.offset_tokens(
            found, lens=lens, side=side, k=min(k, MOST_TOKENS)
        )
        for side in get_args(Side)
        for (lens, its_side), k in n_read.items()
        if its_side == side
    }


def _none(result: Any) -> dict[str, Drawn]:
    """A table says it all."""
    return {}


FIGURES: Mapping[type, Callable[[Any], dict[str, Drawn]]] = {
    HeadScores: _heads,
    Evaluation: _none,
    SideEffects: _none,
    analysis.AttentionPatterns: lambda found: {"": plots.attention_view(found)},
    analysis.DoseResponse: lambda found: {"": plots.dose_curves(found)},
    analysis.HeadOverlap: _overlap,
    analysis.HeadTransfer: lambda found: {"": plots.head_transfer(found)},
    analysis.Mixture: _mixture,
    analysis.OffsetAttribution: lambda found: {"": plots.offset_attribution(found)},
    analysis.OffsetGeometry: _geometry,
    analysis.OffsetPlane: lambda found: {"": plots.offset_plane(found)},
    analysis.OffsetReading: _reading,
    analysis.Sweep: _sweep,
    analysis.TokenEffects: lambda found: {"": plots.token_view(found)},
    analysis.TransferTable: lambda found: {"": plots.transfer_matrix(found)},
}


def figures_of(result: Result) -> dict[str, Drawn]:
    """Figures by name; one alone has none.

    Raises:
        ValueError: what the result holds cannot be drawn.
    """
    figures = FIGURES[type(result)](result)
    return {"": next(iter(figures.values()))} if len(figures) == 1 else figures
