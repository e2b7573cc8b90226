"""Which heads the runs of a study have chosen: maps on one colour scale, layers, and what they share."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import plotly.graph_objects as go

from lofit_lens import plots
from lofit_lens.analysis import HeadOverlap, head_overlap
from lofit_lens.heads import Head, HeadScores
from lofit_lens.plots.heads import colour_scale
from lofit_lens.report.figures import chosen_by
from lofit_lens.report.sources import Findings

#: Panels of a figure: side by side on a screen and on a page; below each other.
IN_A_ROW, IN_A_COLUMN = 3, 6
#: Of heads that nobody has chosen from, as many are compared.
DEFAULT_K = 0.1

Item = TypeVar("Item")


class Origin(NamedTuple):
    """What scores and heads were made of, but for the seed: runs that share all of it are one task, repeated."""

    task: str
    method: str
    model: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores with their name, and the heads that were chosen by them, if any were."""

    name: str
    origin: Origin
    scores: HeadScores
    chosen: tuple[Head, ...]


def named_origins(study: Findings) -> list[tuple[str, Origin]]:
    """Of each run, then of each result that is scores: a label that tells it from the others, and what it was made of."""
    scores = _scores_of(study)
    models = _models(study)
    of_runs = [
        Origin(run.task, run.method, models[run.model, run.fingerprint], _settings(run.settings, run.task_settings))
        for run in study.runs
    ]
    of_scores = [_origin_of_result(name, found, models[_model_of(found)]) for name, found in scores.items()]
    labels = [run.label for run in study.runs] + [_label_of_result(name, found) for name, found in scores.items()]
    # Apart: a run knows what its offsets were learned with, which scores alone do not.
    apart = told_apart(of_runs) + told_apart(of_scores)
    return [(", ".join([label, *told]), origin) for label, told, origin in zip(labels, apart, of_runs + of_scores, strict=True)]


def _scores_of(study: Findings) -> dict[str, HeadScores]:
    return {name: result for name, result in study.results.items() if isinstance(result, HeadScores)}


def _origin_of_result(name: str, scores: HeadScores, model: str) -> Origin:
    method, *settings = (scores.made_by.get(key) for key in ("method", "settings", "task_settings"))
    of_method, of_task = (found if isinstance(found, Mapping) else {} for found in settings)
    # What is random, say, is of no task.
    task = str(scores.made_by.get("task") or method or name)
    return Origin(task, str(method or ""), model, _settings(of_method, of_task))


def _label_of_result(name: str, scores: HeadScores) -> str:
    """As a run's; the name of its file where it does not know what it was made of."""
    task, method, seed = (scores.made_by.get(key) for key in ("task", "method", "seed"))
    if method is None:
        return name
    return ", ".join([*([] if task is None else [str(task)]), str(method), *([] if seed is None else [f"seed {seed}"])])


def _models(study: Findings) -> dict[tuple[str, str], str]:
    """By name and fingerprint, what each model is called here: two of one name are told apart by their fingerprints."""
    found = [(run.model, run.fingerprint) for run in study.runs] + list(map(_model_of, _scores_of(study).values()))
    marks: dict[str, set[str]] = defaultdict(set)
    for name, mark in found:
        marks[name] |= {mark} - {""}  # a run of the model as it is knows its name only
    return {(name, mark): f"{name} {mark[:8]}".strip() if len(marks[name]) > 1 else name for name, mark in found}


def _model_of(scores: HeadScores) -> tuple[str, str]:
    base = scores.base_model or {}
    return str(base.get("name", "")), str(base.get("fingerprint", ""))


def _settings(of_method: Mapping[str, Any], of_task: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell runs apart. How many heads are chosen, and which are given, is seen from the heads themselves."""
    kept = {name: value for name, value in of_method.items() if name not in ("k", "heads", "token_budget")}
    return {**kept, **{"task seed" if name == "seed" else name: value for name, value in of_task.items()}}


def told_apart(origins: Sequence[Origin]) -> list[list[str]]:
    """For each, what it takes to tell it from the others: the model where there are several, and settings that differ from
    those of the same task and method.
    """
    several = len({origin.model for origin in origins if origin.model}) > 1
    alike: dict[tuple[str, str], list[Origin]] = defaultdict(list)
    for origin in origins:
        alike[origin.task, origin.method].append(origin)
    told = []
    for origin in origins:
        others = alike[origin.task, origin.method]
        differ = [name for name, value in origin.settings.items() if any(one.settings.get(name) != value for one in others)]
        model = [origin.model] if several and origin.model else []
        told.append(model + [f"{name} = {_plain(origin.settings[name])}" for name in differ])
    return told


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def all_scores(study: Findings) -> list[Scored]:
    """Of runs, and of results that are not those of a run, each once."""
    found: dict[tuple[object, ...], Scored] = {}
    named = named_origins(study)
    for run, (name, origin) in zip(study.runs, named[: len(study.runs)], strict=True):
        if run.scores is not None:
            one = Scored(name, origin, run.scores, run.heads)
            found.setdefault((origin.model, _numbers(run.scores), run.heads), one)
    seen = {(model, numbers) for model, numbers, _ in found}
    for (file, result), (name, origin) in zip(_scores_of(study).items(), named[len(study.runs) :], strict=True):
        numbers = _numbers(result)
        # Older files do not say of which model they are.
        if (origin.model, numbers) in seen or (not origin.model and numbers in {known for _, known in seen}):
            continue
        seen.add((origin.model, numbers))
        found[origin.model, numbers, file] = Scored(name, origin, result, chosen_by(result))
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
    """For each model and quantity, what is shown, and figures of a few maps each, all on one colour scale."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[Scored]] = defaultdict(list)
    for one in found:
        groups[one.origin.model, one.scores.quantity, tuple(one.scores.values.shape)].append(one)
    several = len({model for model, *_ in groups if model}) > 1
    maps = []
    for (model, quantity, (n_layers, n_heads)), members in groups.items():
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
        whose = f"{model}: " if several and model else ""
        maps.append((f"{whose}{quantity}, {n_layers} layers x {n_heads} heads; one colour scale{outlined}.", figures))
    return maps


def _on_two_lines(name: Any) -> None:
    """Of a panel that may have to be narrow: the task, how it was made, and what tells it from others, if anything must."""
    task, *rest = name.text.split(", ")
    lines = [task, ", ".join(rest[:2]), *rest[2:]]
    name.update(text="<br>".join(filter(None, lines)), font_size=13)


def layer_histograms(study: Findings, found: Sequence[Scored]) -> list[go.Figure]:
    """Layers of the chosen heads, each set of heads of a model once."""
    edited = [
        (name, origin.model, run.n_layers, run.heads)
        for run, (name, origin) in zip(study.runs, named_origins(study), strict=False)  # results come behind
        if run.heads and run.n_layers
    ]
    scored = [(one.name, one.origin.model, one.scores.values.shape[0], one.chosen) for one in found if one.chosen]
    sets: dict[tuple[int, str, frozenset[Head]], str] = {}
    for name, model, n_layers, heads in scored + edited:
        sets.setdefault((n_layers, model, frozenset(heads)), name)
    figures = []
    for n_layers, members in itertools.groupby(sorted(sets.items(), key=lambda one: one[0][0]), key=lambda one: one[0][0]):
        named = [(name, heads) for (*_, heads), name in members]
        selections = dict(zip(unique_names(name for name, _ in named), (heads for _, heads in named), strict=True))
        for part in _parts(list(selections), IN_A_COLUMN):
            figures.append(plots.layer_histogram({name: selections[name] for name in part}, n_layers))
    return figures


def overlaps(found: Sequence[Scored]) -> list[HeadOverlap]:
    """Of scores over the same heads of which as many were chosen, by what they were made of: seeds alone are repetitions."""
    groups: dict[tuple[Any, ...], list[Scored]] = defaultdict(list)
    for one in found:
        scored = tuple(sorted(one.scores.rank()))
        groups[tuple(one.scores.values.shape), scored, len(one.chosen)].append(one)
    compared = []
    for (*_, k), members in groups.items():
        repeated: list[tuple[Origin, list[HeadScores]]] = []
        for one in members:
            seeds = next((seeds for origin, seeds in repeated if origin == one.origin), None)
            if seeds is None:
                repeated.append((one.origin, [one.scores]))
            else:
                seeds.append(one.scores)
        if len(members) > 1:
            names = _names_in_a_matrix([origin for origin, _ in repeated])
            compared.append(head_overlap(dict(zip(names, (seeds for _, seeds in repeated), strict=True)), k or DEFAULT_K))
    return compared


def _names_in_a_matrix(origins: Sequence[Origin]) -> list[str]:
    """The task, and its method where there are several, and what else differs."""
    several = len({origin.method for origin in origins}) > 1
    apart = told_apart(origins)
    names = [
        ", ".join([origin.task, *([origin.method] if several and origin.method not in ("", origin.task) else []), *told])
        for origin, told in zip(origins, apart, strict=True)
    ]
    return unique_names(names)


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
