"""Greedy generation under whatever edit is attached: batched, with a KV cache, and without reading what can be guessed.

A guess of an answer goes through the model together with its prompt, once. As far as every token of it is the arg-max
behind the tokens before it, greedy generation would give just that; from the first other token on, tokens are generated one
by one. (This is speculative decoding with a drafted answer; Leviathan et al. 2023, arXiv 2211.17192, at temperature 0.)
In an evaluation the gold answer is the guess, so that a model that knows the answers generates next to nothing. Answers that
have ended leave their batch, and new ones come in. A model whose keys and values do not give the logits of the plain pass
(`ModelInfo.can_share_prefix`) reads prompt and answer again for every token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import caches, lens
from lofit_lens.batches import (
    TOKEN_BUDGET,
    Answers,
    TokenSequence,
    by_length,
    collate,
    encode_prompts,
    padded,
    refuse_one_string,
)
from lofit_lens.interventions import Intervention, attached, prompted
from lofit_lens.layout import behind_prompts, laid_out, left_padded
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.packing import Pack
from lofit_lens.prefixes import Prefix, begun, can_pack, room_taken, shared_root, unpack
from lofit_lens.progress import progress
from lofit_lens.scoring import DIVERGED, answer_logits, answer_packs, packed_answer_logits, room_of_logits


class GreedyAnswer(NamedTuple):
    """What greedy generation gives for one of the sequences; `guessed` if no token had to be generated."""

    sequence: int
    ids: tuple[int, ...]
    guessed: bool


@dataclass(frozen=True)
class _Running:
    """Answers that have not ended: which, their tokens so far, and the prefix that the next tokens come from."""

    indices: list[int]
    answers: list[list[int]]
    prefix: Prefix

    def joined(self, other: "_Running") -> "_Running":
        return _Running(self.indices + other.indices, self.answers + other.answers, self.prefix.joined(other.prefix))


def generated_text(model: LensModel, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The text of generated tokens, up to the first end-of-sequence token (`lens.end_tokens`) and the first stop string."""
    text = _decoded(model, ids)
    cuts = [text.find(mark) for mark in stop if mark in text]
    return text[: min(cuts)] if cuts else text


def _decoded(model: LensModel, ids: Sequence[int]) -> str:
    """The text that stop strings are looked for in: up to the first end-of-sequence token, without special tokens."""
    ends = lens.end_tokens(model)
    return model.tokenizer.decode(list(takewhile(lambda token: token not in ends, ids)), skip_special_tokens=True)


def generate(
    model: LensModel,
    prompts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    max_new_tokens: int = 16,
    stop: Sequence[str] = (),
    token_budget: int = TOKEN_BUDGET,
) -> list[str]:
    """Continue each prompt greedily, and return the new text without its end-of-sequence token and stop string.

    The edit applies at every position: at the prompt's when it is read, at each new token's when that is read. An answer
    does not depend on which prompts share its batch (rounding apart, which can only matter where two tokens tie).

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        prompts: the texts to continue.
        intervention: edit to apply, or None for the base model.
        max_new_tokens: the most that is generated.
        stop: strings at which an answer ends; of ordinary text, as special tokens are not looked at.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: the model, the intervention or a prompt cannot be used; before anything is run.
        ArithmeticError: logits are not finite.
    """
    check_model(model)
    if max_new_tokens < 1:
        raise ValueError(f"got max_new_tokens={max_new_tokens}; wanted at least one token")
    refuse_one_string(prompts=prompts)
    if not prompts:
        return []
    encoded = encode_prompts(model, prompted(intervention, prompts), room_for=max_new_tokens)
    # The one guess that costs nothing: that there is no answer.
    guess = (model.tokenizer.eos_token_id or 0,)
    texts = [""] * len(prompts)
    bar = progress(None, "generate", total=len(prompts))
    with torch.no_grad(), attached(model, intervention), bar:
        sequences = [TokenSequence(ids, guess) for ids in encoded]
        for answer in greedy_answers(model, sequences, max_new_tokens, stop, token_budget):
            texts[answer.sequence] = generated_text(model, answer.ids, stop)
            bar.update()
    return texts


@torch.no_grad()
def greedy_answers(
    model: LensModel, sequences: Sequence[TokenSequence], max_new_tokens: int, stop: Sequence[str], token_budget: int
) -> Iterator[GreedyAnswer]:
    """The tokens that greedily follow each prompt, up to those that end the answer, in any order.

    Args:
        model: with the edit, if any, already attached.
        sequences: prompts, and guesses of their answers.
        max_new_tokens: the most that is generated.
        stop: strings at which an answer ends.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ArithmeticError: logits are not finite.
    """
    ends = lens.end_tokens(model)
    keeps_cache = check_model(model).can_share_prefix

    def has_ended(answer: Sequence[int]) -> bool:
        if len(answer) >= max_new_tokens or answer[-1] in ends:
            return True
        return bool(stop) and any(mark in _decoded(model, answer) for mark in stop)

    running: _Running | None = None
    for right, others in _guesses(model, sequences, max_new_tokens, has_ended, token_budget):
        yield from right
        for new in others:
            ended, new = _step(model, new, has_ended)
            yield from ended
            if new is not None:
                running = new if running is None else running.joined(new)
            # A step costs a pass over all weights, whatever the number of rows: go on when there are many. Rows that are read
            # again at every step are as many as fit already.
            while running is not None and (not keeps_cache or running.prefix.mask.numel() >= token_budget):
                ended, running = _step(model, running, has_ended)
                yield from ended
    while running is not None:
        ended, running = _step(model, running, has_ended)
        yield from ended


def _step(
    model: LensModel, running: _Running, has_ended: Callable[[Sequence[int]], bool]
) -> tuple[list[GreedyAnswer], _Running | None]:
    """One token more for each answer: those that ended with it, and the rest."""
    read_on = _read_cached if check_model(model).can_share_prefix else _read_again
    chosen, prefix = read_on(model, running)
    answers = [[*answer, token] for answer, token in zip(running.answers, chosen, strict=True)]
    kept = [row for row, answer in enumerate(answers) if not has_ended(answer)]
    ended = [GreedyAnswer(running.indices[row], tuple(answers[row]), False) for row in range(len(answers)) if row not in kept]
    if not kept:
        return ended, None
    if ended:
        prefix = prefix.select(kept)
    return ended, _Running([running.indices[row] for row in kept], [answers[row] for row in kept], prefix)


def _read_cached(model: LensModel, running: _Running) -> tuple[list[int], Prefix]:
    """The next token of each answer, and the prefix of the token behind it, from keys and values kept."""
    unread = running.prefix.unread
    tokens, mask = padded(model, unread, side="left")
    mask = torch.cat([running.prefix.mask, mask], dim=-1)
    width = tokens.shape[1]
    if any(running.answers):
        layout = behind_prompts(len(unread), width)
    else:
        layout = left_padded([len(ids) for ids in unread], width, n_read=running.prefix.lengths_read)
    with laid_out(layout), model.hooks(fwd_hooks=[lens.last_position_only(model)]):
        logits, cache = caches.forward_with_cache(model, tokens, mask, running.prefix.cache)
    chosen = _likeliest(logits[:, -1])
    return chosen, Prefix(tuple((token,) for token in chosen), mask, cache)


def _read_again(model: LensModel, running: _Running) -> tuple[list[int], Prefix]:
    """The same by a plain pass over prompts and answers, where keys and values do not give that pass's logits."""
    unread = running.prefix.unread
    batch = collate(model, [TokenSequence(ids, (0,)) for ids in unread])
    prompt_lengths = tuple(len(ids) - len(answer) for ids, answer in zip(unread, running.answers, strict=True))
    chosen = _likeliest(answer_logits(model, replace(batch, prompt_lengths=prompt_lengths), generates=True))
    return chosen, replace(running.prefix, unread=tuple((*ids, token) for ids, token in zip(unread, chosen, strict=True)))


def _likeliest(logits: Float[Tensor, "place d_vocab"]) -> list[int]:
    """The arg-max at each place.

    Raises:
        ArithmeticError: it is not finite, so that there is none.
    """
    highest, tokens = logits.max(-1)
    if not highest.isfinite().all():
        n_bad = int((~highest.isfinite()).sum())
        raise ArithmeticError(f"no likeliest token at {n_bad} of {len(tokens)} places: logits are not finite; {DIVERGED}")
    return tokens.tolist()


def _guesses(
    model: LensModel,
    sequences: Sequence[TokenSequence],
    max_new_tokens: int,
    has_ended: Callable[[Sequence[int]], bool],
    token_budget: int,
) -> Iterator[tuple[list[GreedyAnswer], Iterable[_Running]]]:
    """In turn, the answers that have ended as far as they were guessed, and all others, ready to go on."""
    prompts = [sequence.prompt for sequence in sequences]
    lengths = [len(s.prompt) + max(len(s.answer), max_new_tokens) for s in sequences]
    root = shared_root(model, prompts)
    if can_pack(model, root, [sequence.read[root.n_read :] for sequence in sequences]):
        for pack, answers in answer_packs(model, root, sequences, token_budget):
            logits, cache = packed_answer_logits(model, root, pack, answers)
            guessed, ended = _as_far_as_guessed(logits, answers, has_ended)
            del logits  # before the next pack's are computed
            right = [GreedyAnswer(i, tuple(guessed[m]), True) for m, i in enumerate(pack.indices) if ended[m]]
            others = [m for m in range(len(guessed)) if not ended[m]]
            yield right, _running(root, pack, cache, others, guessed, prompts, lengths, token_budget)
        return
    rooms = [len(s.prompt) + room_of_logits(model, len(s.answer), token_budget) for s in sequences]
    for group, beginning in begun(model, root, prompts, list(map(max, lengths, rooms)), token_budget):
        prefix = beginning.read_on(model)
        batch = collate(model, [TokenSequence(rest, sequences[i].answer) for rest, i in zip(prefix.unread, group, strict=True)])
        guessed, ended = _as_far_as_guessed(
            answer_logits(model, batch, prefix=prefix.select(range(len(group))), generates=True), batch, has_ended
        )
        others = [row for row in range(len(group)) if not ended[row]]
        right = [GreedyAnswer(i, tuple(guessed[row]), True) for row, i in enumerate(group) if ended[row]]
        # What was read of wrong guesses is in the rows; from the prompts on, it goes without.
        restarted = _Running([group[row] for row in others], [[] for _ in others], prefix.select(others)) if others else None
        yield right, [] if restarted is None else [restarted]


def _as_far_as_guessed(
    logits: Float[Tensor, "place d_vocab"], answers: Answers, has_ended: Callable[[Sequence[int]], bool]
) -> tuple[list[list[int]], list[bool]]:
    """The tokens that greedy generation gives, up to the first that was not guessed, and whether they are a whole answer."""
    found: list[list[int]] = [[] for _ in range(answers.n_sequences)]
    right = [True] * answers.n_sequences
    ended = [False] * answers.n_sequences
    likeliest = _likeliest(logits)
    owners, places, targets = (part.tolist() for part in (answers.owners, answers.places, answers.targets))
    for owner, place, target in zip(owners, places, targets, strict=True):
        token = likeliest[place]
        if right[owner] and not ended[owner]:
            found[owner].append(token)
            right[owner] = token == target
            ended[owner] = has_ended(found[owner])
    return found, ended


def _running(
    root: Prefix,
    pack: Pack,
    cache: Any,
    members: Sequence[int],
    guessed: Sequence[list[int]],
    prompts: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    token_budget: int,
) -> Iterator[_Running]:
    """Members of a pack whose answers go on behind what was guessed, in groups of rows."""
    read = {m: len(prompts[pack.indices[m]]) + len(guessed[m]) - 1 for m in members}
    rooms = [room_taken(read[m], lengths[pack.indices[m]] - read[m]) for m in members]
    for group in by_length(rooms, token_budget):
        chosen = [members[place] for place in group]
        prefix = unpack(root, pack, cache, chosen, [read[m] for m in chosen], [guessed[m][-1:] for m in chosen])
        yield _Running([pack.indices[m] for m in chosen], [guessed[m] for m in chosen], prefix)
