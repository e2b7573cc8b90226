"""The forward pass: log-probabilities of answers, under whatever edit is attached.

For an answer `a` of tokens a_1..a_n behind a prompt `p`, log P(a | p) = sum_i log P(a_i | p, a_<i), not normalised by length
(TruthfulQA's and the paper's score). Only the positions that predict answer tokens go through the unembedding, and
log-probabilities are float32: `logits[target] - logsumexp(logits)`. Whatever is read once, packed or padded, a score is that of
one plain pass over prompt and answer up to rounding, some 1e-6 of its size: 1e-5 nats where a short answer has -10, 1e-3 nats
where one of 300 tokens has -1,500.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import caches, lens
from lofit_lens.batches import TOKEN_BUDGET, Answers, Batch, TokenSequence, by_length, collate, encode, refuse_one_string
from lofit_lens.frozen import Resumption
from lofit_lens.interventions import Intervention, attached, prompted
from lofit_lens.layout import laid_out, positions_matter, right_padded
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.packing import Pack, packed_answers, packs
from lofit_lens.prefixes import Prefix, begun, can_pack, read_pack, room_taken, shared_root
from lofit_lens.progress import progress

#: Logits that a pass over answers may give: 48 MB in float32, unless the next one or a single long answer needs more.
LOGITS_AT_ONCE = 12_000_000
#: Rows of logits that are worth a pass, and that are exponentiated at once: 67 MB in float32 for 262,144 tokens.
ROWS_OF_LOGITS = 64
#: What numbers that are not finite say, as `check_model` found the bare model's to be finite.
DIVERGED = "the edit has diverged: fit it again with a lower learning rate, or scale it down"


def logit_rows(model: LensModel) -> int:
    """Rows of logits that a pass over several answers may give, however many tokens go through it."""
    return max(ROWS_OF_LOGITS, LOGITS_AT_ONCE // model.cfg.d_vocab)


def room_of_logits(model: LensModel, n_rows: int, token_budget: int) -> int:
    """Tokens that rows of logits count for, so that sequences within a token budget have at most `logit_rows` together."""
    return math.ceil(n_rows * token_budget / logit_rows(model))


def answer_logits(
    model: LensModel,
    batch: Batch,
    resumption: Resumption | None = None,
    prefix: Prefix | None = None,
    *,
    generates: bool = False,
) -> Float[Tensor, "place d_vocab"]:
    """Logits at the places that predict the batch's answers, in float32; differentiable when gradients are on.

    Args:
        model: with the edit, if any, already attached.
        batch: right-padded sequences.
        resumption: start above the frozen layers; see `frozen`.
        prefix: what has been read of the batch's prompts, used up by this pass; see `prefixes`.
        generates: whether the answers are guesses of what will be generated; see `layout.Layout`.
    """
    with ExitStack() as stack:
        if positions_matter():
            n_read = None if prefix is None else prefix.lengths_read
            layout = right_padded(batch.prompt_lengths, batch.tokens.shape[1], n_read=n_read, generates=generates)
            stack.enter_context(laid_out(layout))
        if resumption is not None:
            stack.enter_context(resumption.applied(model))
        stack.enter_context(_answers_only(model, batch))
        if prefix is None or prefix.cache is None:
            logits = lens.plain_forward(model, batch.tokens, batch.attention_mask)
        else:
            mask = torch.cat([prefix.mask, batch.attention_mask], dim=-1)
            logits, _ = caches.forward_with_cache(model, batch.tokens, mask, prefix.cache)
    return logits.squeeze(0).float()


def _answers_only(model: LensModel, answers: Answers) -> AbstractContextManager[Any]:
    trim_last_mlp = check_model(model).can_trim_last_mlp
    return model.hooks(fwd_hooks=lens.answer_only_hooks(model, answers.rows, answers.columns, trim_last_mlp=trim_last_mlp))


def answer_packs(
    model: LensModel, root: Prefix, sequences: Sequence[TokenSequence], token_budget: int
) -> Iterator[tuple[Pack, Answers]]:
    """Sequences packed into rows, for `packed_answer_logits`; each pack has at most `logit_rows` places or one sequence's.

    Args:
        model: `can_pack` has said yes.
        root: what has been read of all prompts.
        sequences: whole, root included.
        token_budget: tokens that go through the model at once.
    """
    rest = [sequence.read[root.n_read :] for sequence in sequences]
    lengths, budgets = [len(s.answer) for s in sequences], {"token_budget": token_budget, "answer_budget": logit_rows(model)}
    for pack in packs(model, rest, n_before=root.n_read, answer_lengths=lengths, **budgets):
        yield pack, packed_answers(model, pack, sequences, root.n_read)


def packed_answer_logits(
    model: LensModel, root: Prefix, pack: Pack, answers: Answers
) -> tuple[Float[Tensor, "place d_vocab"], Any]:
    """What `answer_logits` gives, of a pack behind a root, and the KV cache of both, under whatever is attached."""
    with _answers_only(model, answers):
        logits, cache = read_pack(model, root, pack)
    return logits.squeeze(0).float(), cache


def target_logprobs(logits: Float[Tensor, "place d_vocab"], answers: Answers) -> Float[Tensor, "answer_token"]:
    """log P of each answer token; never holds a second tensor of the logits' size outside autograd."""
    places, targets = answers.places.to(logits.device), answers.targets.to(logits.device)
    if torch.is_grad_enabled():
        total = logits.logsumexp(-1)
    else:
        total = torch.cat([part.logsumexp(-1) for part in logits.split(ROWS_OF_LOGITS)])
    return logits[places, targets] - total[places]


def per_sequence(values: Float[Tensor, "answer_token"], answers: Answers) -> Float[Tensor, "sequence"]:
    """Sum over each sequence's answer tokens."""
    return values.new_zeros(answers.n_sequences).index_add(0, answers.owners.to(values.device), values)


@torch.no_grad()
def sequence_logprobs(
    model: LensModel,
    sequences: Sequence[TokenSequence],
    *,
    token_budget: int = TOKEN_BUDGET,
    description: str = "score",
) -> Float[Tensor, "sequence"]:
    """log P(answer | prompt) of token sequences, in their order, under whatever is attached.

    Raises:
        ArithmeticError: one of them is not finite.
    """
    scores = torch.empty(len(sequences))
    root = shared_root(model, [sequence.prompt for sequence in sequences])
    ways = _packed if can_pack(model, root, [sequence.read[root.n_read :] for sequence in sequences]) else _padded
    with progress(None, description, total=len(sequences)) as bar:
        for indices, logprobs in ways(model, root, sequences, token_budget):
            scores[list(indices)] = logprobs.cpu()
            bar.update(len(indices))
    if not scores.isfinite().all():
        raise ArithmeticError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are not finite; {DIVERGED}")
    return scores


def _packed(
    model: LensModel, root: Prefix, sequences: Sequence[TokenSequence], token_budget: int
) -> Iterator[tuple[Sequence[int], Float[Tensor, "sequence"]]]:
    for pack, answers in answer_packs(model, root, sequences, token_budget):
        # No name holds a pack's logits while the next ones are computed.
        logprobs = target_logprobs(packed_answer_logits(model, root, pack, answers)[0], answers)
        yield pack.indices, per_sequence(logprobs, answers)


def _padded(
    model: LensModel, root: Prefix, sequences: Sequence[TokenSequence], token_budget: int
) -> Iterator[tuple[Sequence[int], Float[Tensor, "sequence"]]]:
    answers_to: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        answers_to.setdefault(sequence.prompt, []).append(i)
    prompts = list(answers_to)
    longest = [max(len(sequences[i]) for i in indices) for indices in answers_to.values()]
    for group, prefix in begun(model, root, prompts, longest, token_budget):
        members = [(row, i) for row, place in enumerate(group) for i in answers_to[prompts[place]]]
        if len(members) > len(group):
            prefix = prefix.read_on(model)
        rooms = (
            max(
                room_taken(prefix.n_read, len(prefix.unread[row]) + len(sequences[i].answer)),
                room_of_logits(model, len(sequences[i].answer), token_budget),
            )
            for row, i in members
        )
        for part in by_length(rooms, token_budget):
            rows, indices = zip(*(members[m] for m in part), strict=True)
            chosen = prefix.select(rows)
            batch = collate(
                model, [TokenSequence(rest, sequences[i].answer) for rest, i in zip(chosen.unread, indices, strict=True)]
            )
            logprobs = target_logprobs(answer_logits(model, batch, prefix=chosen), batch)
            yield indices, per_sequence(logprobs, batch)


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
        ArithmeticError: a score is not finite.
    """
    check_model(model)
    refuse_one_string(prompts=prompts)
    sequences = encode(model, prompted(intervention, prompts), answers, eos=eos)
    with attached(model, intervention):
        return sequence_logprobs(model, sequences, token_budget=token_budget)
