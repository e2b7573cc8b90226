"""The training loop. There is one.

It learns the tensors that an edit of a frozen model is made of: for LoFiT, a scale or an offset at some heads. Per step: the
mean loss over a batch of examples, plus a penalty such as `l1 * sum|vectors|`; gradient norm clipped; AdamW; learning rate
falling linearly to zero without warm-up. These are the published code's settings (Hugging Face Trainer defaults). The paper's
text says weight decay 0.01 where its code has 0; both can be asked for.

What makes it fast changes no number: weights get no gradient, the unembedding sees answer positions only, layers below the
lowest offset run once (`frozen`), and a batch too large for the token budget is cut into pieces whose gradients add up.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, by_length, collate
from lofit_lens.checkpoints import TrainingState, resumed, sha256_of_tensors, short_sha256
from lofit_lens.frozen import ResidualStore
from lofit_lens.heads import Head, checked_heads
from lofit_lens.interventions import HeadIntervention, Intervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.losses import group_penalty, l1_penalty
from lofit_lens.models import check_model, fingerprint
from lofit_lens.objectives import Objective, PreferenceObjective
from lofit_lens.progress import progress
from lofit_lens.scoring import answer_logits, target_logprobs

VectorKind = Literal["scale", "offset"]
#: What a penalty falls on: every entry of a vector by itself, or a head's vector as a whole.
Penalised = Literal["entries", "heads"]
_PENALTIES = {"entries": l1_penalty, "heads": group_penalty}


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the fit was stopped before the vectors were spoilt."""


@dataclass(frozen=True)
class Optimisation:
    """How vectors are learned.

    Args:
        learning_rate: at the first step; falls linearly to zero.
        epochs: passes over the training examples.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        l1: weight of the penalty on vectors.
        penalised: what it falls on: `losses.l1_penalty` of entries, or `losses.group_penalty` of heads.
        weight_decay: AdamW's.
        clip_norm: largest norm of the gradient of all vectors together.
        init_std: standard deviation of the normal distribution that vectors start from (mean 0).
        token_budget: padded tokens that go through the model at once.
    """

    learning_rate: float
    epochs: int = 5
    batch_size: int = 8
    l1: float = 0.0
    penalised: Penalised = "entries"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    init_std: float = 1e-3
    token_budget: int = TOKEN_BUDGET


@contextmanager
def weights_frozen(model: LensModel) -> Iterator[None]:
    """Inside, no weight of the model asks for a gradient; afterwards each does as it did before."""
    weights = lens.weights(model)
    wanted_gradient = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, wanted in zip(weights, wanted_gradient, strict=True):
            weight.requires_grad_(wanted)


def fit_vectors(
    model: LensModel,
    objective: Objective,
    heads: tuple[Head, ...],
    kind: VectorKind,
    optimisation: Optimisation,
    *,
    seed: int,
    refers_to_start: bool = False,
    description: str,
    settings: Mapping[str, Any],
) -> tuple[Float[Tensor, "k d_head"], tuple[float, ...]]:
    """Learn a scale or an offset at each of the heads; returns the vectors and the loss of each step, without penalty.

    The seed decides the start and the order of the examples, alike on every machine; global random state is not touched.
    With `refers_to_start`, DPO's reference becomes the model under the vectors that are started from. All else as in `train`.

    Raises:
        ValueError: no heads, or heads that the model does not have.
        NonFiniteLossError: names the step, the examples and the learning rate.
    """
    info = check_model(model)
    heads = checked_heads(heads, info.n_layers, info.n_heads)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(len(heads), info.d_head, generator=generator) * optimisation.init_std
    vectors = start.to(lens.model_device(model)).requires_grad_()
    intervention = HeadIntervention(heads, scale=vectors) if kind == "scale" else HeadIntervention(heads, offset=vectors)
    if refers_to_start and isinstance(objective, PreferenceObjective):
        with attached(model, intervention):
            objective.refer_to(model)
    losses = train(
        model,
        objective,
        intervention,
        [vectors],
        optimisation,
        generators=[generator],
        # A scale multiplies what the same layer computed, an offset adds to it: both leave the layers below untouched.
        lowest_layer=min(head.layer for head in heads),
        penalty=(lambda step: optimisation.l1 * _PENALTIES[optimisation.penalised](vectors)) if optimisation.l1 else None,
        description=description,
        settings={**settings, "edited heads": heads, "kind": kind},
    )
    return vectors.detach(), losses


def train(
    model: LensModel,
    objective: Objective,
    intervention: Intervention,
    parameters: Sequence[Tensor],
    optimisation: Optimisation,
    *,
    generators: Sequence[torch.Generator],
    lowest_layer: int,
    before_step: Callable[[], object] = lambda: None,
    penalty: Callable[[int], Float[Tensor, ""]] | None = None,
    relative_rates: Sequence[float] | None = None,
    description: str,
    settings: Mapping[str, Any],
) -> tuple[float, ...]:
    """Learn the tensors that an edit is made of, in place; returns the loss of each step, without penalty.

    Args:
        model: whose weights stay as they are.
        objective: what is minimised.
        intervention: the edit, made of `parameters`.
        parameters: leaves that require grad.
        optimisation: how.
        generators: all that training draws from; the first decides the order of the examples.
        lowest_layer: the residual stream that enters this block is the base model's.
        before_step: called ahead of every step, whose batch may go through the model in several pieces.
        penalty: of a step, by its number from 0: added to its loss.
        relative_rates: each parameter's learning rate, as a multiple of the optimisation's; None is 1 for all.
        description: what a progress bar and an error call it.
        settings: what else decides the result, as plain JSON values, to tell fits apart by.

    Raises:
        ValueError: an edit that does not fit the model, or a checkpoint of another fit.
        NonFiniteLossError: names the step, the examples and the learning rate.
    """
    _refuse_unfit(model, intervention)
    optimiser = _optimiser(parameters, optimisation, relative_rates or [1.0] * len(parameters))
    batches = list(_batches(len(objective.sequences) // objective.sequences_per_example, optimisation, generators[0]))
    state = TrainingState(parameters, optimiser, generators)
    keep = resumed(state, len(batches), lambda: _recipe(model, objective, batches, optimisation, state, settings, description))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 1 - n / len(batches), last_epoch=len(state.losses) - 1)
    with closing(ResidualStore(model, lowest_layer)) as store, weights_frozen(model), torch.enable_grad():
        left = batches[len(state.losses) :]
        store.fill(model, objective.sequences if left else [], optimisation.token_budget)
        with progress(left, description) as bar:
            for examples in bar:
                optimiser.zero_grad()
                before_step()
                loss = accumulate_gradient(model, objective, intervention, examples, optimisation, store)
                if penalty is not None:
                    penalty(len(state.losses)).backward()
                where = f"step {len(state.losses) + 1} of {len(batches)} ({description}), examples {examples}"
                norm = torch.nn.utils.clip_grad_norm_(parameters, optimisation.clip_norm)
                _refuse_non_finite(loss, norm, where, float(schedule.get_last_lr()[0]))
                optimiser.step()
                schedule.step()
                state.losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}")
                keep()
    return tuple(state.losses)


def _refuse_unfit(model: LensModel, intervention: Intervention) -> None:
    with attached(model, intervention):
        pass


def _optimiser(parameters: Sequence[Tensor], optimisation: Optimisation, relative_rates: Sequence[float]) -> torch.optim.AdamW:
    """With the learning rates of the first step, from which a schedule may go on at any other."""
    rates = [optimisation.learning_rate * rate for rate in relative_rates]
    groups = [{"params": [p], "lr": rate, "initial_lr": rate} for p, rate in zip(parameters, rates, strict=True)]
    return torch.optim.AdamW(groups, weight_decay=optimisation.weight_decay)


def _recipe(
    model: LensModel,
    objective: Objective,
    batches: list[list[int]],
    optimisation: Optimisation,
    state: TrainingState,
    settings: Mapping[str, Any],
    description: str,
) -> dict[str, Any]:
    """What decides a fit, to the bit; `state` is that of the start."""
    return {
        "description": description,
        "model": f"{fingerprint(model)} in {model.cfg.dtype}",
        "objective": type(objective).__name__,
        "seeds": [f"{generator.initial_seed()} ({generator.device})" for generator in state.generators],
        "sequences": short_sha256([(sequence.prompt, sequence.answer) for sequence in objective.sequences]),
        "batches": short_sha256(batches),
        "start": sha256_of_tensors({str(i): parameter for i, parameter in enumerate(state.parameters)})[:16],
        **{f"setting {name}": value for name, value in settings.items()},
        **{f"optimisation's {name}": value for name, value in asdict(optimisation).items()},
    }


def _pieces(objective: Objective, examples: Sequence[int], token_budget: int) -> Iterator[tuple[list[int], list[int]]]:
    """The examples in groups under the token budget, with the places of each group's sequences."""
    per_example = objective.sequences_per_example
    keys_of = [range(i * per_example, (i + 1) * per_example) for i in examples]
    lengths = [max(len(objective.sequences[key]) for key in keys) * per_example for keys in keys_of]
    for piece in by_length(lengths, token_budget):
        yield [examples[i] for i in piece], [key for i in piece for key in keys_of[i]]


def _refuse_non_finite(loss: float, gradient_norm: Float[Tensor, ""], where: str, learning_rate: float) -> None:
    if math.isfinite(loss) and bool(gradient_norm.isfinite()):
        return
    raise NonFiniteLossError(
        f"the loss is {loss} or its gradient is not finite at {where}, learning rate {learning_rate:.2e}; "
        "try a smaller learning rate, or float32 if the model is in half precision"
    )


def _batches(n_examples: int, optimisation: Optimisation, generator: torch.Generator) -> Iterator[list[int]]:
    for _ in range(optimisation.epochs):
        order = torch.randperm(n_examples, generator=generator).tolist()
        for first in range(0, n_examples, optimisation.batch_size):
            yield order[first : first + optimisation.batch_size]


def accumulate_gradient(
    model: LensModel,
    objective: Objective,
    intervention: Intervention,
    examples: list[int],
    optimisation: Optimisation,
    store: ResidualStore,
) -> float:
    """Backpropagate the mean loss of a batch, in pieces under the token budget; returns that loss."""
    total_weight = objective.weight(examples)
    total_loss = 0.0
    for part, keys in _pieces(objective, examples, optimisation.token_budget):
        batch = collate(model, [objective.sequences[key] for key in keys])
        resumption = store.resumption(keys, batch.tokens.shape[1])
        with attached(model, intervention):
            logits = answer_logits(model, batch, resumption)
            loss = objective.loss(part, batch, target_logprobs(logits, batch)) * (objective.weight(part) / total_weight)
            loss.backward()
        total_loss += loss.item()
    return total_loss
