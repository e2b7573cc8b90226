"""Probe-layers (the paper, section 4, Table 2).

A logistic probe on all heads of a layer side by side, at the last token of prompt and answer; every head has its layer's
held-out accuracy. The paper does not say how it gets to k heads: here ties go in the order of heads, so that the best layer
comes first, whole.

Where we differ: the paper takes the gold answer of each question and one sampled wrong one; here all right and wrong answers of
a question are taken, as in ITI. Where one label is rare (MQuAKE has eight right answers, aliases mostly, for each wrong one),
accuracy says less.
"""

from pathlib import Path

import torch
from einops import rearrange

from lofit_lens.activations import collect_z
from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import of_model
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.probes import VAL_SHARE, fit_probes, held_out, labelled_answers
from lofit_lens.tasks.base import Task, non_empty


def layer_probe_scores(
    model: LensModel,
    task: Task,
    *,
    seed: int = 0,
    val_share: float = VAL_SHARE,
    standardise: bool = True,
    max_iter: int = 1000,
    folder: str | Path | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> HeadScores:
    """The paper's probe-layers: every head has the held-out accuracy of its layer's probe.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its training split.
        seed: which questions are held out, and which wrong answers stand in where a task has none.
        val_share: share of the training questions that probes are judged by.
        standardise: whether probes are fitted on standardised activations.
        max_iter: of the probes' solver.
        folder: keep activations there, and take them from there (see `activations`).
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: model, task or val_share cannot be used; before anything is run.
    """
    n_heads = check_model(model).n_heads
    labelled = labelled_answers(non_empty(task.train, task, "train"), seed=seed)
    is_held_out = held_out(labelled.questions, val_share, seed=seed)
    texts = {"names": labelled.names, "folder": folder, "token_budget": token_budget}
    z = collect_z(model, labelled.prompts, labelled.answers, **texts)
    side_by_side = rearrange(z, "layer text head d_head -> layer text 1 (head d_head)")
    is_right = torch.tensor(labelled.is_right)
    probes = fit_probes(side_by_side, is_right, is_held_out, standardise=standardise, max_iter=max_iter)
    made_by = {"method": "probe-layers", **task.provenance(), "seed": seed}
    values = probes.accuracy.repeat(1, n_heads)
    return HeadScores(values, "held-out accuracy of the layer's probe", made_by, **of_model(model))
