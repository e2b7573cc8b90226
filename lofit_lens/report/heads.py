"""Which heads the runs of a study have chosen: maps on one colour scale, layers, and what they share."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import plotly.graph_objects as go

from lofit_lens import plots
from lofit_lens.analysis import HeadOverlap, head_overlap
from lofit_lens.heads import Head, HeadScores
from lofit_lens.plots.heads import colour_scale
from lofit_lens.report.figures import k_of
from lofit_lens.report.sources import Findings

#: Panels of a figure: side by side on a screen and on a page; below each other.
IN_A_ROW, IN_A_COLUMN = 3, 6
#: Of heads that nobody has chosen from, as many are compared.
DEFAULT_K = 0.1

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores with their name, and the heads that were chosen by them, if any were."""

    name: str
    task: str
    method: str
    scores: HeadScores
    chosen: tuple[Head, ...]


def all_scores(study: Findings) -> list[Scored]:
    """Of runs, and of results that are not those of a run, each once."""
    found: dict[tuple[object, ...], Scored] = {}
    for run in study.runs:
        if run.scores is not None:
            one = Scored(run.label, run.task, run.method, run.scores, run.heads)
            found.setdefault((_numbers(run.scores), run.heads), one)
    seen = {numbers for numbers, _ in found}
    for name, result in study.results.items():
        if isinstance(result, HeadScores) and _numbers(result) not in seen:
            seen.add(_numbers(result))
            k, task = k_of(result), result.made_by.get("task")
            chosen = () if k is None else result.top(k)
            method = str(result.made_by.get("method", ""))
            found[_numbers(result), name] = Scored(name, task if isinstance(task, str) else name, method, result, chosen)
    return list(found.values())


def _numbers(scores: HeadScores) -> tuple[float, ...]:
    return tuple(-1e300 if math.isnan(value) else value for value in scores.values.flatten().tolist())


def unique_names(names: Iterable[str]) -> list[str]:
    """A number behind what is there already."""
    counts: dict[str, int] = defaultdict(int)
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return unique


def head_maps(found: Sequence[Scored]) -> list[tuple[str, list[go.Figure]]]:
    """For each quantity and size of model, what is shown, and figures of a few maps each, all on one colour scale."""
    groups: dict[tuple[str, tuple[int, ...]], list[Scored]] = defaultdict(list)
    for one in found:
        groups[one.scores.quantity, tuple(one.scores.values.shape)].append(one)
    maps = []
    for (quantity, (n_layers, n_heads)), members in groups.items():
        names = unique_names(one.name for one in members)
        scores = {name: one.scores for name, one in zip(names, members, strict=True)}
        chosen = {name: one.chosen for name, one in zip(names, members, strict=True)}
        colours = colour_scale(scores.values())
        figures = [
            plots.head_heatmaps({name: scores[name] for name in part}, {name: chosen[name] for name in part})
            .update_layout(coloraxis=colours)
            .for_each_annotation(_on_two_lines)
            for part in _parts(names, IN_A_ROW)
        ]
        outlined = "; chosen heads outlined" if any(chosen.values()) else ""
        maps.append((f"{quantity}, {n_layers} layers x {n_heads} heads; one colour scale{outlined}.", figures))
    return maps


def _on_two_lines(name: Any) -> None:
    """Of a panel that may have to be narrow."""
    name.update(text=name.text.replace(", ", "<br>", 1), font_size=13)


def layer_histograms(study: Findings, found: Sequence[Scored]) -> list[go.Figure]:
    """Layers of the chosen heads, each set of heads once."""
    edited = [(run.label, run.n_layers, run.heads) for run in study.runs if run.heads and run.n_layers]
    scored = [(one.name, one.scores.values.shape[0], one.chosen) for one in found if one.chosen]
    sets: dict[tuple[int, frozenset[Head]], str] = {}
    for name, n_layers, heads in scored + edited:
        sets.setdefault((n_layers, frozenset(heads)), name)
    figures = []
    for n_layers, members in itertools.groupby(sorted(sets.items(), key=lambda one: one[0][0]), key=lambda one: one[0][0]):
        named = [(name, heads) for (_, heads), name in members]
        selections = dict(zip(unique_names(name for name, _ in named), (heads for _, heads in named), strict=True))
        for part in _parts(list(selections), IN_A_COLUMN):
            figures.append(plots.layer_histogram({name: selections[name] for name in part}, n_layers))
    return figures


def overlaps(found: Sequence[Scored]) -> list[HeadOverlap]:
    """Of scores over the same heads of which as many were chosen: tasks, and their methods where there are several."""
    groups: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for one in found:
        scored = tuple(sorted(one.scores.rank()))
        groups[tuple(one.scores.values.shape), scored, len(one.chosen)].append(one)
    compared = []
    for (*_, k), members in groups.items():
        several = len({one.method for one in members}) > 1
        by_name: dict[str, list[HeadScores]] = defaultdict(list)
        for one in members:
            by_name[f"{one.task}, {one.method}" if several else one.task].append(one.scores)
        if len(members) > 1:
            compared.append(head_overlap(by_name, k or DEFAULT_K))
    return compared


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
