"""The forward pass: log-probabilities of answers, under whatever edit is attached.

For an answer `a` of tokens a_1..a_n behind a prompt `p`, log P(a | p) = sum_i log P(a_i | p, a_<i), not normalised by length
(TruthfulQA's and the paper's score). Only the positions that predict answer tokens go through the unembedding, and
log-probabilities are float32: `logits[target] - logsumexp(logits)`.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, Batch, TokenSequence, by_length, collate, encode
from lofit_lens.frozen import Resumption
from lofit_lens.interventions import Intervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.prefixes import Prefix, begun, room_taken
from lofit_lens.progress import progress


def answer_logits(
    model: LensModel, batch: Batch, resumption: Resumption | None = None, prefix: Prefix | None = None
) -> Float[Tensor, "answer_token d_vocab"]:
    """Logits that predict each answer token of the batch, in float32; differentiable when gradients are on.

    Args:
        model: with the edit, if any, already attached.
        batch: right-padded sequences.
        resumption: start above the frozen layers; see `frozen`.
        prefix: what has been read of the batch's prompts, used up by this pass; see `prefixes`.
    """
    trim_last_mlp = check_model(model).can_trim_last_mlp
    answers_only = lens.answer_only_hooks(model, batch.rows, batch.columns, trim_last_mlp=trim_last_mlp)
    with ExitStack() as stack:
        if resumption is not None:
            stack.enter_context(resumption.applied(model))
        stack.enter_context(model.hooks(fwd_hooks=answers_only))
        if prefix is None or prefix.cache is None:
            logits = lens.plain_forward(model, batch.tokens, batch.attention_mask)
        else:
            mask = torch.cat([prefix.mask, batch.attention_mask], dim=-1)
            logits, _ = lens.forward_with_cache(model, batch.tokens, mask, prefix.cache)
    return logits.squeeze(0).float()


def target_logprobs(logits: Float[Tensor, "answer_token d_vocab"], batch: Batch) -> Float[Tensor, "answer_token"]:
    """log P of each answer token; never holds a second tensor of the logits' size outside autograd."""
    targets = batch.targets.to(logits.device).unsqueeze(-1)
    return logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)


def per_sequence(values: Float[Tensor, "answer_token"], batch: Batch) -> Float[Tensor, "batch"]:
    """Sum over each sequence's answer tokens."""
    return values.new_zeros(batch.tokens.shape[0]).index_add(0, batch.rows.to(values.device), values)


@torch.no_grad()
def sequence_logprobs(
    model: LensModel,
    sequences: Sequence[TokenSequence],
    *,
    token_budget: int = TOKEN_BUDGET,
    description: str = "score",
) -> Float[Tensor, "sequence"]:
    """log P(answer | prompt) of token sequences, in their order, under whatever is attached."""
    scores = torch.empty(len(sequences))
    answers_to: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        answers_to.setdefault(sequence.prompt, []).append(i)
    prompts = list(answers_to)
    longest = [max(len(sequences[i]) for i in indices) for indices in answers_to.values()]
    bar = progress(None, description, total=len(sequences))
    for group, prefix in begun(model, prompts, longest, token_budget):
        members = [(row, i) for row, place in enumerate(group) for i in answers_to[prompts[place]]]
        if len(members) > len(group):
            prefix = prefix.read_on(model)
        read = prefix.mask.shape[1]
        rooms = (room_taken(read, len(prefix.unread[row]) + len(sequences[i].answer)) for row, i in members)
        for part in by_length(rooms, token_budget):
            rows, indices = zip(*(members[m] for m in part), strict=True)
            scores[list(indices)] = _summed(model, prefix.select(rows), [sequences[i].answer for i in indices]).cpu()
            bar.update(len(part))
    bar.close()
    return scores


def _summed(model: LensModel, prefix: Prefix, answers: Sequence[tuple[int, ...]]) -> Float[Tensor, "answer"]:
    batch = collate(model, [TokenSequence(*pair) for pair in zip(prefix.unread, answers, strict=True)])
    return per_sequence(target_logprobs(answer_logits(model, batch, prefix=prefix), batch), batch)


def answer_logprobs(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    intervention: Intervention | None = None,
    *,
    eos: bool = False,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "example"]:
    """log P(answer | prompt) in nats for each pair, summed over answer tokens, in float32 on the CPU.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        prompts: one for each answer; joined to it as they stand, so white space must be in one of the two.
        answers: what is scored.
        intervention: edit to apply, or None for the base model.
        eos: whether an end-of-sequence token behind the answer is scored with it.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: the model, the intervention or a pair cannot be used; before anything is run.
    """
    check_model(model)
    sequences = encode(model, prompts, answers, eos=eos)
    with attached(model, intervention):
        return sequence_logprobs(model, sequences, token_budget=token_budget)
