"""Where cells get their heads: the scores of all heads, by every source that a study can name."""

from dataclasses import replace
from typing import Any

from lofit_lens.causal import leave_one_out_scores
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods import ITI
from lofit_lens.selection import (
    gradient_scores,
    greedy_gradient_scores,
    layer_probe_scores,
    random_scores,
    spread_over_layers,
)
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Cell
from lofit_lens.study.items import GRADIENT_MEASURES, Catalogue, Selection, own_of, pool_of


def scores_for(model: LensModel, selection: Selection, catalogue: Catalogue, store: RunStore) -> HeadScores:
    """Score all heads; what the scores are made of is in the store already.

    Raises:
        ValueError: model or task cannot be used.
        ArithmeticError: the loss became NaN or infinite.
    """
    seed = selection.seed or 0
    drawn = catalogue.seed_of_draw(selection)
    if selection.source == "random":
        return random_scores(model, seed=drawn)
    if selection.source == "random-per-layer":
        return spread_over_layers(random_scores(model, seed=drawn))
    if selection.source == "own-per-layer":
        return spread_over_layers(stored_scores(own_of(selection), catalogue, store))
    if selection.source == "random-like-own":
        like = stored_scores(own_of(selection), catalogue, store).top(selection.k or 1)
        return random_scores(model, seed=drawn, like=like)
    task = catalogue.study.task_at(selection.task, selection.n_train)
    if selection.source == "iti":
        return with_shared_activations(ITI(), store).select(model, task, seed=seed)
    if selection.source in GRADIENT_MEASURES:
        return gradient_scores(model, task, measure=GRADIENT_MEASURES[selection.source])
    if selection.source == "greedy-gradient":
        return greedy_gradient_scores(model, task, k=selection.k or 1)
    if selection.source == "layer-probes":
        return layer_probe_scores(model, task, seed=seed, folder=store.activations_folder)
    if selection.source == "leave-one-out":
        return leave_one_out_scores(model, task, _fitted(pool_of(selection), catalogue, store))
    selector = with_shared_activations(catalogue.selector(selection), store)
    return _without_k(selector.select(model, task, seed=seed))


def stored_scores(selection: Selection, catalogue: Catalogue, store: RunStore) -> HeadScores:
    """Scores that have been made before."""
    scores = store.get_scores(catalogue.settings(selection))
    assert scores is not None, "an item is done after what it needs"
    return scores


def _fitted(cell: Cell, catalogue: Catalogue, store: RunStore) -> HeadIntervention:
    """The edit of a run that has been made before."""
    run = store.get(catalogue.settings(cell))
    assert run is not None, "an item is done after what it needs"
    assert run.fit is not None
    assert isinstance(run.fit.intervention, HeadIntervention)
    return run.fit.intervention


def with_shared_activations(method: Any, store: RunStore) -> Any:
    """The method; if it looks at activations, at those that the store has."""
    if "folder" not in method.__dataclass_fields__:
        return method
    return replace(method, folder=str(store.activations_folder))


def _without_k(scores: HeadScores) -> HeadScores:
    """Cells of several k start from these, so that they say none."""
    settings = {name: value for name, value in scores.made_by["settings"].items() if name not in ("k", "heads")}
    return replace(scores, made_by={**scores.made_by, "settings": settings})
