"""Other ways to score heads than LoFiT's scaling (`LoFiT.select`) and ITI's probes (`ITI.select`); each gives `HeadScores`.

Gradient, one pass. At the unedited model, with L_i the training loss of example i and u a head's scale or offset (at 0),

    g_i = d L_i / d u,   g = mean of g_i        norm:    |g|                                      how fast the loss could fall
                                                signed:  - sum_d g_d                              what turning the head up gains
                                                fisher:  sum_d g_d^2 / (mean of g_i,d^2 + eps)    the same, against its noise

One forward and backward pass over the data, against five epochs of LoFiT's first step. (Norm: the first-order importance of
Michel et al. 2019, arXiv 1905.10650, of a vector in place of a gate; fisher: the gain of a natural-gradient step with the
empirical Fisher's diagonal. eps is a thousandth of the mean of g_i,d^2 over all heads.)

Probe-layers (the paper, section 4, Table 2). A logistic probe on all heads of a layer side by side, at the last token of prompt
and answer; every head has its layer's held-out accuracy. The paper does not say how it gets to k heads: here ties go in the
order of heads, so that the best layer comes first, whole.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.activations import last_token_z
from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.fitting import Optimisation, VectorKind, accumulate_gradient, objective_of, weights_frozen
from lofit_lens.frozen import ResidualStore
from lofit_lens.heads import HeadScores, checked_heads
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.probes import fit_probes, held_out, labelled_answers
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Task, non_empty

Measure = Literal["norm", "signed", "fisher"]
_MEASURES: tuple[Measure, ...] = ("norm", "signed", "fisher")
_KINDS: tuple[VectorKind, ...] = ("scale", "offset")


def gradient_scores(
    model: LensModel,
    task: Task,
    *,
    kind: VectorKind = "scale",
    measure: Measure = "norm",
    dpo_beta: float = 0.5,
    token_budget: int = TOKEN_BUDGET,
) -> HeadScores:
    """First-order importance of every head for the training loss, in one pass over the training examples.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its training split and loss.
        kind: the vector whose gradient is taken.
        measure: what becomes a head's score; see the module.
        dpo_beta: of DPO, for preference tasks.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: model, task, kind or measure cannot be used; before anything is run.
    """
    if kind not in _KINDS or measure not in _MEASURES:
        raise ValueError(f"got kind {kind!r} and measure {measure!r}; wanted one of {_KINDS}, and one of {_MEASURES}")
    info = check_model(model)
    heads = checked_heads(info.all_heads, info.n_layers, info.n_heads)
    objective = objective_of(model, task, dpo_beta=dpo_beta)
    vectors = torch.zeros(len(heads), info.d_head, device=lens.model_device(model), requires_grad=True)
    at_zero = HeadIntervention(heads, scale=vectors) if kind == "scale" else HeadIntervention(heads, offset=vectors)
    settings = Optimisation(learning_rate=0.0, token_budget=token_budget)
    nothing_kept = ResidualStore(model, 0)
    total, total_of_squares = torch.zeros_like(vectors), torch.zeros_like(vectors)
    n_examples = len(objective.sequences) // objective.sequences_per_example
    with weights_frozen(model), torch.enable_grad():
        for i in progress(range(n_examples), f"{task.name}: gradients"):
            vectors.grad = None
            accumulate_gradient(model, objective, at_zero, [i], settings, nothing_kept)
            assert vectors.grad is not None
            total += vectors.grad
            total_of_squares += vectors.grad**2
    scored = _measured(total / n_examples, total_of_squares / n_examples, measure).detach().cpu()
    values = torch.full((info.n_layers, info.n_heads), torch.nan)
    values[[head.layer for head in heads], [head.index for head in heads]] = scored
    made_by = {"method": f"gradient ({kind}, {measure})", "task": task.name}
    return HeadScores(values, quantity=f"{measure} of the gradient of the {kind}", made_by=made_by)


def _measured(mean: Float[Tensor, "k d_head"], mean_square: Float[Tensor, "k d_head"], measure: Measure) -> Float[Tensor, "k"]:
    if measure == "norm":
        return mean.norm(dim=-1)
    if measure == "signed":
        return -mean.sum(-1)
    return (mean**2 / (mean_square + 1e-3 * mean_square.mean())).sum(-1)


def layer_probe_scores(
    model: LensModel,
    task: Task,
    *,
    seed: int = 0,
    val_share: float = 0.2,
    standardise: bool = True,
    max_iter: int = 1000,
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
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: model or task cannot be used; before anything is run.
    """
    n_heads = check_model(model).n_heads
    labelled = labelled_answers(non_empty(task.train, task, "train"), seed=seed)
    z = last_token_z(model, labelled.prompts, labelled.answers, token_budget=token_budget)
    side_by_side = rearrange(z, "layer text head d_head -> layer text 1 (head d_head)")
    is_held_out = held_out(labelled.questions, val_share, seed=seed)
    is_right = torch.tensor(labelled.is_right)
    probes = fit_probes(side_by_side, is_right, is_held_out, standardise=standardise, max_iter=max_iter, seed=seed)
    made_by = {"method": "probe-layers", "task": task.name, "seed": seed}
    return HeadScores(probes.accuracy.repeat(1, n_heads), quantity="held-out accuracy of the layer's probe", made_by=made_by)
