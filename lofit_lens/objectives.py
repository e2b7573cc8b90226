"""What training minimises: the loss of a task, over examples made of one or more token sequences."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from lofit_lens.batches import Batch, TokenSequence, encode
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


def objective_of(
    model: LensModel, task: Task, *, dpo_beta: float, split: Split = "train", first: int | None = None
) -> Objective:
    """The loss that the task names, over a split, or the first examples of it.

    Raises:
        ValueError: an empty split, or an example that cannot be tokenised.
    """
    examples = non_empty(task.splits[split], task, split)[:first]
    if task.loss == "dpo":
        return PreferenceObjective(model, examples, dpo_beta)
    return AnswerObjective(model, examples)
