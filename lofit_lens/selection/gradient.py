"""Score heads by gradients at the unedited model: one pass over the training examples.

One head at a time. At the unedited model, with L_i the training loss of example i and u a head's scale or offset (at 0),

    g_i = d L_i / d u,   g = mean of g_i        norm:    |g|                                      how fast the loss could fall
                                                signed:  - sum_d g_d                              what turning the head up gains
                                                fisher:  sum_d g_d^2 / (mean of g_i,d^2 + eps)    the same, against its noise

Each example counts alike, however long its answer; in training, each answer token does. One forward and backward pass over the
data, against five epochs of LoFiT's first step. (Norm: the first-order importance of Michel et al. 2019, arXiv 1905.10650, of a
vector in place of a gate; fisher: the gain of a natural-gradient step with the empirical Fisher's diagonal. eps is a thousandth
of the mean of g_i,d^2 over all heads.)

Greedy, as a set. Heads scored one at a time may all say the same. What a set S of heads gains together by a natural-gradient
step, with F the empirical Fisher and g_i,S the gradients of its heads side by side, is

    gain(S) = 1/2 g_S^T (F_SS + Lambda)^-1 g_S          F_SS = mean of g_i,S g_i,S^T,  g_S = mean of g_i,S
            = 1/2 (1 - 1^T A_S 1 / n)                   A_S  = (I + sum over h in S of G_h G_h^T / (n lambda_h))^-1

where Lambda is diagonal, lambda_h for all entries of head h, and the rows of G_h are the n examples' g_i,h. A is all that is
carried from head to head: it holds what S cannot do yet, which is to lower all losses alike. Each turn takes the head that
adds most, by

    1^T A 1 - 1^T A' 1 = v^T (I + U^T A U)^-1 v         U = G_h / sqrt(n lambda_h),  v = U^T A 1      (Woodbury)

A chosen head's score is 1^T A 1 / n just before it came: what was left to gain, 1 for the first. Another head's is the share of
that 1 that it would add last. So the chosen come first, in their order: they leave less and less, and nobody can add more than
is left. A head that repeats another comes late, however large its gradient.

None stands in for the first step on SmolLM2: norms and signed sums are worse than random heads on Truth, Fisher-weighted ones
choose a set of late heads on two of six tasks at which offsets learn nothing, and greedy ones do far worse on the same two. On
Gemma 3 norms do better than random heads and than the first step's, by .05 and .04; see `figures/choosers`.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.fitting import Optimisation, VectorKind, accumulate_gradient, weights_frozen
from lofit_lens.frozen import ResidualStore
from lofit_lens.heads import Head, HeadScores, head_count
from lofit_lens.interventions import HeadIntervention, of_model
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.objectives import objective_of
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Task

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
        ValueError: model, task, kind or measure cannot be used, before anything is run; or gradients that are not finite or
            all zero.
    """
    if kind not in _KINDS or measure not in _MEASURES:
        raise ValueError(f"got kind {kind!r} and measure {measure!r}; wanted one of {_KINDS}, and one of {_MEASURES}")
    n_examples, total, total_of_squares = 0, torch.zeros(()), torch.zeros(())
    for gradient in _example_gradients(model, task, kind, dpo_beta=dpo_beta, token_budget=token_budget):
        n_examples += 1
        total = total + gradient
        total_of_squares = total_of_squares + gradient**2
    _refuse_not_finite(total_of_squares.mean())
    values = _at_their_heads(model, _measured(total / n_examples, total_of_squares / n_examples, measure))
    made_by = {"method": f"gradient ({kind}, {measure})", **task.provenance()}
    quantity = f"{measure} of the gradient of the {kind}"
    return HeadScores(values, quantity, made_by, is_signed=measure == "signed", **of_model(model))


def _example_gradients(
    model: LensModel, task: Task, kind: VectorKind, *, dpo_beta: float, token_budget: int
) -> Iterator[Float[Tensor, "k d_head"]]:
    """For each training example, the gradient of its loss in the vectors of all heads, at the unedited model."""
    info = check_model(model)
    heads = tuple(Head(*head) for head in info.all_heads)
    objective = objective_of(model, task, dpo_beta=dpo_beta, token_budget=token_budget)
    vectors = torch.zeros(len(heads), info.d_head, device=lens.model_device(model), requires_grad=True)
    at_zero = HeadIntervention(heads, scale=vectors) if kind == "scale" else HeadIntervention(heads, offset=vectors)
    settings = Optimisation(learning_rate=0.0, token_budget=token_budget)
    nothing_kept = ResidualStore(model, 0)
    n_examples = len(objective.sequences) // objective.sequences_per_example
    for i in progress(range(n_examples), f"{task.name}: gradients"):
        with weights_frozen(model), torch.enable_grad():
            accumulate_gradient(model, objective, at_zero, [i], settings, nothing_kept)
        assert vectors.grad is not None
        yield vectors.grad
        vectors.grad = None


def _at_their_heads(model: LensModel, values: Float[Tensor, "k"]) -> Float[Tensor, "layer head"]:
    info = check_model(model)
    placed = torch.full((info.n_layers, info.n_heads), torch.nan)
    layers, indices = zip(*info.all_heads, strict=True)
    placed[list(layers), list(indices)] = values.detach().cpu().float()
    return placed


def _measured(mean: Float[Tensor, "k d_head"], mean_square: Float[Tensor, "k d_head"], measure: Measure) -> Float[Tensor, "k"]:
    if measure == "norm":
        return mean.norm(dim=-1)
    if measure == "signed":
        return -mean.sum(-1)
    return (mean**2 / (mean_square + 1e-3 * mean_square.mean())).sum(-1)


def greedy_gradient_scores(
    model: LensModel,
    task: Task,
    *,
    k: int | float,
    kind: VectorKind = "offset",
    ridge: float = 10.0,
    own_scale: bool = True,
    dpo_beta: float = 0.5,
    token_budget: int = TOKEN_BUDGET,
) -> HeadScores:
    """Heads that gain most *together*, one after another, from one pass over the training examples; see the module.

    `.top(k)` gives the chosen heads in the order they were chosen in. The gradients of all examples are held in memory.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its training split and loss.
        k: heads to choose: a count, or a fraction of all heads.
        kind: the vector whose gradient is taken.
        ridge: lambda_h, in units of a mean squared gradient entry, the mean of F's diagonal. A set of more dimensions than
            there are examples gains from noise too: wanted is their ratio, or more (27 heads of 64 on 300 examples: 6).
        own_scale: that mean is the head's own, so that it does not matter how large a head's gradients are; else it is the mean
            over all heads, and heads with large gradients, often those of the first layers, come first.
        dpo_beta: of DPO, for preference tasks.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: model, task, k, kind or ridge cannot be used; before anything is run. Or gradients that are not finite, or
            all zero.
    """
    count = head_count(k, len(check_model(model).all_heads))
    if kind not in _KINDS or not 0 < ridge < math.inf:
        raise ValueError(f"got kind {kind!r} and ridge {ridge}; wanted one of {_KINDS}, and a number above 0")
    passes = _example_gradients(model, task, kind, dpo_beta=dpo_beta, token_budget=token_budget)
    gradients = torch.stack([gradient.cpu() for gradient in passes])
    values = greedy_values(gradients, count, ridge, own_scale=own_scale)
    settings = {"k": count, "ridge": ridge, "own_scale": own_scale}
    made_by = {"method": f"gradient ({kind}, greedy)", **task.provenance(), **settings}
    quantity = "gain left when chosen, or added last"
    return HeadScores(_at_their_heads(model, values), quantity, made_by, **of_model(model))


def greedy_values(
    gradients: Float[Tensor, "example k d_head"], count: int, ridge: float, *, own_scale: bool
) -> Float[Tensor, "k"]:
    """Choose `count` heads one after another, each the one that adds most to those before it; the module says what is scored.

    Raises:
        ValueError: gradients that are not finite, or all zero.
    """
    n_examples, n_heads = gradients.shape[:2]
    damping = ridge * _mean_squares(gradients, own_scale=own_scale)
    scaled = gradients.double().transpose(0, 1) / (n_examples * damping).sqrt().reshape(-1, 1, 1)
    left = torch.eye(n_examples, dtype=torch.float64)
    values = torch.empty(n_heads, dtype=torch.float64)
    waiting = list(range(n_heads))
    for _ in range(count):
        best = max(waiting, key=lambda head: _gain_added(left, scaled[head]))
        values[best] = left.sum() / n_examples
        left = _left_with(left, scaled[best])
        waiting.remove(best)
    for head in waiting:
        values[head] = _gain_added(left, scaled[head]) / n_examples
    return values


def _mean_squares(gradients: Float[Tensor, "example k d_head"], *, own_scale: bool) -> Float[Tensor, "k"]:
    own = gradients.double().square().mean((0, 2))
    over_all = own.mean()
    _refuse_not_finite(over_all)
    # A head whose gradients are zero gains nothing on any scale.
    return torch.where(own > 0, own, over_all) if own_scale else over_all.expand_as(own)


def _refuse_not_finite(mean_square: Float[Tensor, ""]) -> None:
    if not 0 < mean_square < math.inf:
        raise ValueError(
            f"the mean squared gradient is {mean_square.item()}, wanted a finite number above 0; if the model is in half "
            "precision, load it in float32"
        )


def _gain_added(left: Float[Tensor, "example example"], scaled: Float[Tensor, "example d_head"]) -> float:
    """v^T (I + U^T A U)^-1 v."""
    reach = left @ scaled
    v = reach.sum(0)
    return (v @ torch.linalg.solve(_identity_plus(scaled.T @ reach), v)).item()


def _left_with(
    left: Float[Tensor, "example example"], scaled: Float[Tensor, "example d_head"]
) -> Float[Tensor, "example example"]:
    """A - A U (I + U^T A U)^-1 U^T A."""
    reach = left @ scaled
    return left - reach @ torch.linalg.solve(_identity_plus(scaled.T @ reach), reach.T)


def _identity_plus(matrix: Float[Tensor, "d_head d_head"]) -> Float[Tensor, "d_head d_head"]:
    return torch.eye(len(matrix), dtype=matrix.dtype) + matrix
