"""What training minimises: the loss of a task, over examples made of one or more token sequences."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lofit_lens.batches import TOKEN_BUDGET, Batch, TokenSequence, encode_answers
from lofit_lens.interventions import Intervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.losses import dpo_loss, mean_answer_loss
from lofit_lens.scoring import per_sequence, sequence_logprobs
from lofit_lens.tasks.base import Example, Split, Task, names_of, non_empty


@runtime_checkable
class Objective(Protocol):
    """A loss over examples, each made of one or more token sequences."""

    sequences: list[TokenSequence]
    sequences_per_example: int

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        """Mean loss of the examples whose sequences, in order, make up the batch."""
        ...

    def loss_of(self, examples: list[int], logprobs: Float[Tensor, "sequence"]) -> Float[Tensor, ""]:
        """The same of whole answers' log-probabilities: two for each example of a preference task."""
        ...

    def weight(self, examples: list[int]) -> int:
        """What these examples count for when means over parts of a batch are put together."""
        ...


class AnswerObjective:
    """Cross-entropy of the answers, end-of-sequence token included, as the paper trains."""

    sequences_per_example = 1

    def __init__(self, model: LensModel, examples: Sequence[Example]) -> None:
        self.sequences = answer_sequences(model, examples)

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        return mean_answer_loss(token_logprobs)

    def loss_of(self, examples: list[int], logprobs: Float[Tensor, "sequence"]) -> Float[Tensor, ""]:
        return -logprobs.sum() / self.weight(examples)

    def weight(self, examples: list[int]) -> int:
        return sum(len(self.sequences[i].answer) for i in examples)


class PreferenceObjective:
    """DPO of the answer against the first rejected one; the reference is the bare model, unless `refer_to` is called."""

    sequences_per_example = 2

    def __init__(self, model: LensModel, examples: Sequence[Example], beta: float, token_budget: int = TOKEN_BUDGET) -> None:
        self.beta, self.token_budget = beta, token_budget
        self.sequences = preference_sequences(model, examples)
        self.refer_to(model)

    def refer_to(self, model: LensModel) -> None:
        """Take the model as it is now, under whatever is attached, for the reference."""
        self.reference = sequence_logprobs(
            model, self.sequences, token_budget=self.token_budget, description="reference"
        ).reshape(-1, 2)

    def loss(self, examples: list[int], batch: Batch, token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
        return self.loss_of(examples, per_sequence(token_logprobs, batch))

    def loss_of(self, examples: list[int], logprobs: Float[Tensor, "sequence"]) -> Float[Tensor, ""]:
        chosen, rejected = logprobs.reshape(-1, 2).unbind(-1)
        reference_chosen, reference_rejected = self.reference[examples].to(chosen.device).unbind(-1)
        return dpo_loss(chosen, rejected, reference_chosen, reference_rejected, self.beta)

    def weight(self, examples: list[int]) -> int:
        return len(examples)


def answer_sequences(model: LensModel, examples: Sequence[Example]) -> list[TokenSequence]:
    """Each example's answer, as cross-entropy reads it.

    Raises:
        ValueError: an example that cannot be tokenised.
    """
    return encode_answers(model, examples, [(example.answer,) for example in examples], eos=True)


def preference_sequences(model: LensModel, examples: Sequence[Example]) -> list[TokenSequence]:
    """Each example's answer, then its first rejected one, as DPO reads them.

    Raises:
        ValueError: an example that cannot be tokenised, or that has no rejected answer.
    """
    for name, example in zip(names_of(examples), examples, strict=True):
        if not example.rejected:
            raise ValueError(f"{name} has no rejected answer; DPO needs one: {example.prompt[:60]!r}")
    return encode_answers(model, examples, [(example.answer, example.rejected[0]) for example in examples], eos=True)


def objective_of(
    model: LensModel,
    task: Task,
    *,
    dpo_beta: float,
    token_budget: int = TOKEN_BUDGET,
    split: Split = "train",
    first: int | None = None,
) -> Objective:
    """The loss that the task names, over a split, or the first examples of it.

    Raises:
        ValueError: a beta that is no number above 0, an empty split, or an example that cannot be tokenised.
    """
    if not 0 < dpo_beta < math.inf:
        raise ValueError(f"got dpo_beta {dpo_beta}; wanted a number above 0")
    examples = non_empty(task.splits[split], task, split)[:first]
    if task.loss == "dpo":
        return PreferenceObjective(model, examples, dpo_beta, token_budget)
    return AnswerObjective(model, examples)


def mean_loss(
    model: LensModel, objective: Objective, intervention: Intervention | None, *, token_budget: int = TOKEN_BUDGET
) -> float:
    """The objective over all of its examples, under an edit; what they share is read once.

    Raises:
        ArithmeticError: an answer's log-probability is not finite.
    """
    examples = list(range(len(objective.sequences) // objective.sequences_per_example))
    with attached(model, intervention):
        logprobs = sequence_logprobs(model, objective.sequences, token_budget=token_budget)
    return objective.loss_of(examples, logprobs).item()
