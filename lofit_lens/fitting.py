"""The training loop. There is one.

It learns the tensors that an edit of a frozen model is made of: for LoFiT, a scale or an offset at some heads. Per step: the
mean loss over a batch of examples, plus a penalty such as `l1 * sum|vectors|`; gradient norm clipped; AdamW; learning rate
falling linearly to zero without warm-up. These are the published code's settings (Hugging Face Trainer defaults). The paper's
text says weight decay 0.01 where its code has 0; both can be asked for.

What makes it fast changes no number: weights get no gradient, the unembedding sees answer positions only, layers below the
lowest offset run once (`frozen`), and a batch too large for the token budget is cut into pieces whose gradients add up.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, Batch, TokenSequence, by_length, collate, encode
from lofit_lens.frozen import ResidualStore
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, Intervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.losses import dpo_loss, l1_penalty, mean_answer_loss
from lofit_lens.models import check_model
from lofit_lens.progress import progress
from lofit_lens.scoring import answer_logits, per_sequence, sequence_logprobs, target_logprobs
from lofit_lens.tasks.base import Example, Task, names_of, non_empty

VectorKind = Literal["scale", "offset"]


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the fit was stopped before the vectors were spoilt."""


@dataclass(frozen=True)
class Optimisation:
    """How vectors are learned.

    Args:
        learning_rate: at the first step; falls linearly to zero.
        epochs: passes over the training examples.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        l1: weight of the plain sum of absolute values.
        weight_decay: AdamW's.
        clip_norm: largest norm of the gradient of all vectors together.
        init_std: standard deviation of the normal distribution that vectors start from (mean 0).
        token_budget: padded tokens that go through the model at once.
    """

    learning_rate: float
    epochs: int = 5
    batch_size: int = 8
    l1: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    init_std: float = 1e-3
    token_budget: int = TOKEN_BUDGET


@runtime_checkable
class Objective(Protocol):
    """A loss over examples, each made of one or more token sequences."""

    sequences: list[TokenSequence]
    sequences_per_example: int

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        """Mean loss of the examples whose sequences, in order, make up the batch."""
        ...

    def weight(self, examples: list[int]) -> int:
        """What these examples count for when means over parts of a batch are put together."""
        ...


class AnswerObjective:
    """Cross-entropy of the answers, end-of-sequence token included, as the paper trains."""

    sequences_per_example = 1

    def __init__(self, model: LensModel, examples: Sequence[Example]) -> None:
        prompts, answers = [e.prompt for e in examples], [e.answer for e in examples]
        self.sequences = encode(model, prompts, answers, eos=True, names=names_of(examples))

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        return mean_answer_loss(token_logprobs)

    def weight(self, examples: list[int]) -> int:
        return sum(len(self.sequences[i].answer) for i in examples)


class PreferenceObjective:
    """DPO of the answer against the first rejected one, against the bare model as reference."""

    sequences_per_example = 2

    def __init__(self, model: LensModel, examples: Sequence[Example], beta: float) -> None:
        for i, example in enumerate(examples):
            if not example.rejected:
                raise ValueError(
                    f"training {names_of(examples)[i]} has no rejected answer; DPO needs one: {example.prompt[:60]!r}"
                )
        prompts = [e.prompt for e in examples for _ in range(2)]
        answers = [answer for e in examples for answer in (e.answer, e.rejected[0])]
        names = [name for name in names_of(examples) for _ in range(2)]
        self.beta = beta
        self.sequences = encode(model, prompts, answers, eos=True, names=names)
        self.reference = sequence_logprobs(model, self.sequences, description="reference").reshape(-1, 2)

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        chosen, rejected = per_sequence(token_logprobs, batch).reshape(-1, 2).unbind(-1)
        reference_chosen, reference_rejected = self.reference[examples].to(chosen.device).unbind(-1)
        return dpo_loss(chosen, rejected, reference_chosen, reference_rejected, self.beta)

    def weight(self, examples: list[int]) -> int:
        return len(examples)


def objective_of(model: LensModel, task: Task, *, dpo_beta: float) -> Objective:
    """The loss that the task names, over its training split.

    Raises:
        ValueError: an empty split, or an example that cannot be tokenised.
    """
    examples = non_empty(task.train, task, "train")
    if task.loss == "dpo":
        return PreferenceObjective(model, examples, dpo_beta)
    return AnswerObjective(model, examples)


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
    description: str,
) -> tuple[Float[Tensor, "k d_head"], tuple[float, ...]]:
    """Learn a scale or an offset at each of the heads; returns the vectors and the loss of each step, without penalty.

    The seed decides the start and the order of the examples, alike on every machine; global random state is not touched.

    Raises:
        ValueError: heads that the model does not have.
        NonFiniteLossError: names the step, the examples and the learning rate.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(len(heads), check_model(model).d_head, generator=generator) * optimisation.init_std
    vectors = start.to(lens.model_device(model)).requires_grad_()
    intervention = HeadIntervention(heads, scale=vectors) if kind == "scale" else HeadIntervention(heads, offset=vectors)
    losses = train(
        model,
        objective,
        intervention,
        [vectors],
        optimisation,
        generator=generator,
        # A scale multiplies what the same layer computed, an offset adds to it: both leave the layers below untouched.
        lowest_layer=min((head.layer for head in heads), default=0),
        penalty=(lambda: optimisation.l1 * l1_penalty(vectors)) if optimisation.l1 else None,
        description=description,
    )
    return vectors.detach(), losses


def train(
    model: LensModel,
    objective: Objective,
    intervention: Intervention,
    parameters: Sequence[Tensor],
    optimisation: Optimisation,
    *,
    generator: torch.Generator,
    lowest_layer: int,
    penalty: Callable[[], Float[Tensor, ""]] | None = None,
    description: str,
) -> tuple[float, ...]:
    """Learn the tensors that an edit is made of, in place; returns the loss of each step, without penalty.

    Args:
        model: whose weights stay as they are.
        objective: what is minimised.
        intervention: the edit, made of `parameters`.
        parameters: leaves that require grad.
        optimisation: how.
        generator: decides the order of the examples.
        lowest_layer: the residual stream that enters this block is the base model's.
        penalty: added to the loss of every step.
        description: what a progress bar and an error call it.

    Raises:
        ValueError: an edit that does not fit the model.
        NonFiniteLossError: names the step, the examples and the learning rate.
    """
    intervention.fwd_hooks(model)  # refuses what does not fit, before anything is run
    optimiser = torch.optim.AdamW(parameters, lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay)
    batches = list(_batches(len(objective.sequences) // objective.sequences_per_example, optimisation, generator))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / len(batches))
    store = ResidualStore(model, lowest_layer)
    losses: list[float] = []
    bar = progress(batches, description)
    try:
        with weights_frozen(model), torch.enable_grad():
            for examples in bar:
                optimiser.zero_grad()
                loss = accumulate_gradient(model, objective, intervention, examples, optimisation, store)
                if penalty is not None:
                    penalty().backward()
                where = f"step {len(losses) + 1} of {len(batches)} ({description}), examples {examples}"
                _refuse_non_finite(loss, parameters, where, float(schedule.get_last_lr()[0]))
                torch.nn.utils.clip_grad_norm_(parameters, optimisation.clip_norm)
                optimiser.step()
                schedule.step()
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}")
    finally:
        bar.close()
        store.close()
    return tuple(losses)


def _refuse_non_finite(loss: float, parameters: Sequence[Tensor], where: str, learning_rate: float) -> None:
    gradients = [parameter.grad for parameter in parameters]
    if math.isfinite(loss) and all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
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
    per_example = objective.sequences_per_example
    keys_of = [range(i * per_example, (i + 1) * per_example) for i in examples]
    lengths = [max(len(objective.sequences[key]) for key in keys) * per_example for keys in keys_of]
    total_weight = objective.weight(examples)
    total_loss = 0.0
    for piece in by_length(lengths, optimisation.token_budget):
        keys = [key for i in piece for key in keys_of[i]]
        part = [examples[i] for i in piece]
        sequences = [objective.sequences[key] for key in keys]
        batch = collate(model, sequences)
        resumption = store.resumption(keys, batch.tokens.shape[1])
        with attached(model, intervention):
            if resumption is None:
                with store.recording(model, keys, [len(sequence.read) for sequence in sequences]):
                    logits = answer_logits(model, batch)
            else:
                logits = answer_logits(model, batch, resumption)
            loss = objective.loss(part, batch, target_logprobs(logits, batch)) * (objective.weight(part) / total_weight)
            loss.backward()
        total_loss += loss.item()
    return total_loss
