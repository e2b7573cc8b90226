"""From text to token tensors: the only place that tokenises and pads.

Prompt and answer are tokenised apart and joined, so it is always exact which tokens are answer tokens. (The published code
slices template ids by hand, `[2:]` for one tokenizer and `[1:]` for another.) Texts that are run for what hooks see of them are
run here, too, so that an edit always knows where prompts end.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lofit_lens.layout import laid_out, right_padded
from lofit_lens.lens import LensModel, model_device, plain_forward
from lofit_lens.tasks.base import Example, names_of

#: Padded tokens that go through the model at once when nothing else is asked for.
TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class TokenSequence:
    """One prompt and one answer, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def read(self) -> tuple[int, ...]:
        """What goes through the model: the last token of the answer is predicted, and nothing behind it."""
        return (self.prompt + self.answer)[:-1]


@dataclass(frozen=True)
class Answers:
    """Where the answers of sequences are predicted.

    Answer token `i`, which is `targets[i]`, belongs to sequence `owners[i]` and is predicted at place `n = places[i]`: by the
    logits at row `rows[n]` and position `columns[n]`. Answers that begin alike share places, each unembedded once.
    """

    rows: Int[Tensor, "place"]
    columns: Int[Tensor, "place"]
    places: Int[Tensor, "answer_token"]
    targets: Int[Tensor, "answer_token"]
    owners: Int[Tensor, "answer_token"]
    n_sequences: int


@dataclass(frozen=True)
class Batch(Answers):
    """Right-padded sequences, each in a row of its own with `prompt_lengths` tokens before its answer."""

    prompt_lengths: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]


def refuse_one_string(**texts: Sequence[str]) -> None:
    """A string is a sequence of strings too, its letters; nobody means that.

    Raises:
        ValueError: one of the arguments is a string.
    """
    for name, value in texts.items():
        if isinstance(value, str):
            raise ValueError(f"{name} is one string, {value[:60]!r}; wanted a list of strings: [{name[:-1]}]")


def encode_prompt(model: LensModel, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt, with one BOS in front where the model is used with one (`cfg.default_prepend_bos`).

    Raises:
        ValueError: no text, or no token at all.
    """
    tokenizer = model.tokenizer
    ids = _ids(tokenizer, prompt)
    bos = tokenizer.bos_token_id
    if model.cfg.default_prepend_bos and bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
    if not ids:
        raise ValueError(f"the prompt {prompt!r} tokenises to nothing; a prompt needs at least one token")
    return tuple(ids)


def encode_prompts(
    model: LensModel, prompts: Sequence[str], *, room_for: int, names: Sequence[str] | None = None
) -> list[tuple[int, ...]]:
    """Token ids of prompts that `room_for` tokens may follow; without names, an error numbers them.

    Raises:
        ValueError: a prompt that cannot be tokenised, or is too long for the model's context; with its name.
    """
    names = [f"prompt {i}" for i in range(len(prompts))] if names is None else names
    encoded = []
    for name, prompt in zip(names, prompts, strict=True):
        with naming(name):
            ids = encode_prompt(model, prompt)
        if len(ids) + room_for > model.cfg.n_ctx:
            raise ValueError(
                f"{name} has {len(ids)} tokens and {room_for} may follow; the model's context has {model.cfg.n_ctx}: "
                f"{prompt[:60]!r}..."
            )
        encoded.append(ids)
    return encoded


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put in front of a ValueError what it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    if not isinstance(text, str):
        raise ValueError(f"got {text!r} ({type(text).__name__}), wanted a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"got {text[error.start]!r}, half of a surrogate pair, at character {error.start} of {text[:60]!r}; wanted whole "
            "Unicode characters"
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ids_behind_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that other text precedes: some tokenizers (Llama 2's) put a space in front of what starts a text."""
    alone, line, both = (_ids(tokenizer, part) for part in (text, "\n", f"\n{text}"))
    return both[len(line) :] if both[: len(line)] == line else alone


def encode_answer(model: LensModel, answer: str, *, eos: bool) -> tuple[int, ...]:
    """Token ids of an answer, with the end-of-sequence token behind it if `eos` and the tokenizer has one.

    Raises:
        ValueError: no text, or no token at all.
    """
    ids = _ids_behind_text(model.tokenizer, answer)
    if not ids:
        raise ValueError(f"the answer {answer!r} tokenises to nothing; an answer needs at least one token")
    if eos and model.tokenizer.eos_token_id is not None:
        ids.append(model.tokenizer.eos_token_id)
    return tuple(ids)


def encode(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    eos: bool,
    room_for: int = 0,
    names: Sequence[str] | None = None,
) -> list[TokenSequence]:
    """Tokenise prompt-answer pairs.

    Args:
        model: whose tokenizer and context length count.
        prompts: as many as answers.
        answers: joined to their prompts as they stand.
        eos: whether answers end with the end-of-sequence token.
        room_for: tokens that will be generated behind the prompt.
        names: what an error calls each pair; without them, examples are numbered.

    Raises:
        ValueError: a pair is longer than the model's context, or a side is empty or no text; with its name.
    """
    refuse_one_string(prompts=prompts, answers=answers)
    if len(prompts) != len(answers):
        raise ValueError(f"got {len(prompts)} prompts and {len(answers)} answers; wanted as many of each")
    names = [f"example {i}" for i in range(len(prompts))] if names is None else names
    encode_once = cache(partial(encode_prompt, model))  # many answers may follow one prompt
    sequences = []
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        with naming(name):
            sequence = TokenSequence(encode_once(prompt), encode_answer(model, answer, eos=eos))
        needed = max(len(sequence), len(sequence.prompt) + room_for)
        if needed > model.cfg.n_ctx:
            raise ValueError(
                f"{name} needs {needed} tokens, the model's context has {model.cfg.n_ctx}: {prompt[:60]!r}...; "
                "shorten the prompt or leave the example out"
            )
        sequences.append(sequence)
    return sequences


def encode_answers(
    model: LensModel, examples: Sequence[Example], answers: Sequence[Sequence[str]], *, eos: bool
) -> list[TokenSequence]:
    """Tokenise some answers to each example, one example's behind another's.

    Raises:
        ValueError: as `encode`; with the example's number, and its file and record if they are known.
    """
    named = zip(names_of(examples), examples, answers, strict=True)
    rows = [(name, example.prompt, answer) for name, example, own in named for answer in own]
    names, prompts, texts = zip(*rows, strict=True)
    return encode(model, prompts, texts, eos=eos, names=names)


def pad_id(model: LensModel) -> int:
    """Some valid id to fill with; it is masked, so which one does not matter."""
    tokenizer = model.tokenizer
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def collate(model: LensModel, sequences: Sequence[TokenSequence]) -> Batch:
    """Right-pad sequences into one batch on the model's device."""
    tokens, attention_mask = padded(model, [sequence.read for sequence in sequences], side="right")
    columns = [range(len(sequence.prompt) - 1, len(sequence) - 1) for sequence in sequences]
    answers = answers_at(model, [sequence.answer for sequence in sequences], range(len(sequences)), columns)
    prompt_lengths = tuple(len(sequence.prompt) for sequence in sequences)
    return Batch(**vars(answers), prompt_lengths=prompt_lengths, tokens=tokens, attention_mask=attention_mask)


def answers_at(
    model: LensModel, answers: Sequence[tuple[int, ...]], rows: Sequence[int], columns: Sequence[Sequence[int]]
) -> Answers:
    """Answers, from the row that each is in and the columns where its tokens are predicted."""
    places: dict[tuple[int, int], int] = {}
    predicted = [
        (places.setdefault((row, column), len(places)), token, owner)
        for owner, (answer, row, own) in enumerate(zip(answers, rows, columns, strict=True))
        for column, token in zip(own, answer, strict=True)
    ]
    device = model_device(model)
    where = torch.tensor(list(places), dtype=torch.long, device=device).reshape(-1, 2)
    which = torch.tensor(predicted, dtype=torch.long, device=device).reshape(-1, 3)
    return Answers(*where.unbind(-1), *which.unbind(-1), n_sequences=len(answers))


def padded(
    model: LensModel, sequences: Sequence[tuple[int, ...]], *, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids as one tensor on the model's device, and its attention mask: 0 where it was filled up."""
    width = max(map(len, sequences))
    tokens = torch.full((len(sequences), width), pad_id(model))
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        place = slice(width - len(ids), width) if side == "left" else slice(len(ids))
        tokens[row, place] = torch.tensor(ids)
        mask[row, place] = 1
    device = model_device(model)
    return tokens.to(device), mask.to(device)


def run_right_padded(model: LensModel, texts: Sequence[tuple[int, ...]], prompt_lengths: Sequence[int]) -> None:
    """Run texts, padded on the right, for what hooks see of them.

    Args:
        model: with an edit attached or not.
        texts: token ids.
        prompt_lengths: how many of each text's are its prompt's, for an edit that asks where prompts end.
    """
    tokens, mask = padded(model, texts, side="right")
    with laid_out(right_padded(prompt_lengths, tokens.shape[1])):
        plain_forward(model, tokens, mask)


def by_length(lengths: Iterable[int], token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Group indices of sequences of like length, so that a padded group has at most `token_budget` tokens.

    A sequence longer than the budget gets a group of its own. Longest first: what does not fit in memory fails at once.
    """
    lengths = list(lengths)
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > token_budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
