"""From text to tokens: what is joined, padded and marked. The tiny models' tokens are bytes, so all can be written by hand."""

import random

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from lofit_lens import Head, HeadIntervention, generate, side_effects
from lofit_lens.batches import (
    TokenSequence,
    by_length,
    collate,
    encode,
    encode_answer,
    encode_prompt,
    pad_id,
    padded,
)
from lofit_lens.tiny import tiny_tokenizer

PAD, BOS, EOS = 0, 1, 2
A, B, C, D, SPACE = 67, 68, 69, 70, 223


def test_the_ids_written_here_are_the_tokenizers(llama):
    tokenizer = llama.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD, BOS, EOS)
    assert tokenizer("abcd ", add_special_tokens=False)["input_ids"] == [A, B, C, D, SPACE]


def test_prompt_and_answer_are_joined_as_they_stand_behind_one_bos(model):
    [sequence] = encode(model, ["ab "], [" c"], eos=False)
    assert sequence == TokenSequence((BOS, A, B, SPACE), (SPACE, C))
    assert len(sequence) == 6


def test_the_joined_tokens_are_those_of_the_joined_text(llama):
    prompts, answers = ["Q: Où?\nA:", "x", ""], [" Là-bas", "\n", "ab"]
    for sequence, prompt, answer in zip(encode(llama, prompts, answers, eos=False), prompts, answers, strict=True):
        assert list(sequence.prompt + sequence.answer) == llama.tokenizer(prompt + answer)["input_ids"]


def test_a_tokenizer_that_puts_a_space_in_front_of_a_text_puts_none_between_prompt_and_answer(llama, monkeypatch):
    # As Llama 2's: "Paris" alone is the token for " Paris".
    characters = "\u2581\nabcdefghijklmnopqrstuvwxyzAPQ:?"
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<s>", "</s>", *characters])}, merges=[]))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", name_or_path="toy", add_bos_token=True
    )
    monkeypatch.setattr(llama, "tokenizer", tokenizer)
    for prompt, answer in [("Q: a?\nA:", "Paris"), ("Q: a?\nA:", " Paris"), ("Q: a?\nA: ", "Paris"), ("Q: a?", "\nA: Paris")]:
        [sequence] = encode(llama, [prompt], [answer], eos=False)
        assert list(sequence.prompt + sequence.answer)[1:] == tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]


def test_eos_stands_behind_the_answer_only_when_asked_for(llama):
    assert encode_answer(llama, "c", eos=True) == (C, EOS)
    assert encode_answer(llama, "c", eos=False) == (C,)


def test_bos_is_not_doubled_when_the_prompt_starts_with_it(llama):
    assert encode_prompt(llama, "<bos>ab") == encode_prompt(llama, "ab") == (BOS, A, B)


def test_no_bos_where_the_model_is_used_without(llama, monkeypatch):
    monkeypatch.setattr(llama.cfg, "default_prepend_bos", False)
    assert encode_prompt(llama, "ab") == (A, B)
    with pytest.raises(ValueError, match="the prompt '' tokenises to nothing"):
        encode_prompt(llama, "")


def test_a_batch_by_hand(llama):
    batch = collate(llama, encode(llama, ["ab", "a"], ["cd", "b"], eos=True))
    assert batch.tokens.tolist() == [[BOS, A, B, C, D], [BOS, A, B, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    # Answer tokens in order, and where the logits stand that predict each: one place before it.
    assert batch.targets.tolist() == [C, D, EOS, B, EOS]
    assert batch.rows.tolist() == [0, 0, 0, 1, 1]
    assert batch.columns.tolist() == [2, 3, 4, 1, 2]


def test_every_target_is_the_token_behind_the_place_that_predicts_it(llama):
    text = random.Random(0)
    prompts, answers = (["".join(text.choices("abcd ", k=text.randint(1, 30))) for _ in range(20)] for _ in range(2))
    sequences = encode(llama, prompts, answers, eos=True)
    batch = collate(llama, sequences)
    places = zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
    whole = [sequence.prompt + sequence.answer for sequence in sequences]
    assert [whole[row][column + 1] for row, column in places] == batch.targets.tolist()
    assert batch.attention_mask[batch.rows, batch.columns].all()
    assert batch.targets.tolist() == [token for sequence in sequences for token in sequence.answer]
    assert batch.attention_mask.sum(-1).tolist() == [len(sequence) - 1 for sequence in sequences]


def test_left_padding_by_hand(llama):
    tokens, mask = padded(llama, [(BOS, A, B), (BOS,)], side="left")
    assert tokens.tolist() == [[BOS, A, B], [PAD, PAD, BOS]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_padding_falls_back_to_eos_where_there_is_no_padding_token(llama, monkeypatch):
    assert pad_id(llama) == PAD
    without_padding = tiny_tokenizer()
    without_padding.pad_token = None
    monkeypatch.setattr(llama, "tokenizer", without_padding)
    assert pad_id(llama) == EOS


# Groups under a token budget


@pytest.mark.parametrize("budget", [1, 10, 64, 10_000])
def test_groups_cover_each_index_once_and_respect_the_budget(budget):
    numbers = random.Random(budget)
    lengths = [numbers.randint(1, 40) for _ in range(200)]
    groups = list(by_length(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(200))
    padded = [len(group) * max(lengths[i] for i in group) for group in groups]
    assert [size for size, group in zip(padded, groups, strict=True) if size > budget and len(group) > 1] == []


def test_groups_are_of_like_length_longest_first_and_as_large_as_the_budget_allows():
    assert list(by_length([3, 9, 1, 3, 8, 2], token_budget=9)) == [[1], [4], [0, 3, 5], [2]]
    assert list(by_length([3, 9, 1, 3, 8, 2], token_budget=18)) == [[1, 4], [0, 3, 5, 2]]


def test_a_sequence_longer_than_the_budget_gets_a_group_of_its_own():
    assert list(by_length([5, 20, 5], token_budget=10)) == [[1], [0, 2]]


def test_nothing_makes_no_group():
    assert list(by_length([])) == []


# Errors


def test_an_empty_answer_is_refused(llama):
    with pytest.raises(ValueError, match="the answer '' tokenises to nothing"):
        encode(llama, ["a"], [""], eos=True)


def test_as_many_prompts_as_answers_are_wanted(llama):
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        encode(llama, ["a", "b"], ["c"], eos=True)


def test_an_example_longer_than_the_context_is_named(llama):
    # <bos>, the prompt, the answer and <eos>: 256 tokens fit exactly.
    encode(llama, ["a", "b" * 253], ["c", "d"], eos=True)
    with pytest.raises(ValueError, match="example 1 needs 257 tokens, the model's context has 256: 'bbb"):
        encode(llama, ["a", "b" * 254], ["c", "d"], eos=True)


def test_room_for_what_will_be_generated_counts(llama):
    encode(llama, ["b" * 239], ["d"], eos=True, room_for=16)
    with pytest.raises(ValueError, match="example 0 needs 257 tokens"):
        encode(llama, ["b" * 240], ["d"], eos=True, room_for=16)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("bad", ["half \ud83d of a smile", None, 7, float("nan")], ids=["surrogate", "none", "int", "nan"])
def test_what_is_no_text_is_named_instead_of_the_tokenizers_own_error(llama, bad):
    said = "half of a surrogate pair, at character 5" if isinstance(bad, str) else "wanted a text"
    for prompts, answers in ((["a", bad], ["b", "c"]), (["a", "b"], ["c", bad])):
        with pytest.raises(ValueError, match=f"line 3: got .*{said}"):
            encode(llama, prompts, answers, eos=True, names=["line 2", "line 3"])
    with pytest.raises(ValueError, match=f"prompt 1: got .*{said}"):
        generate(llama, ["a", bad])
    with pytest.raises(ValueError, match=f"text 1: got .*{said}"):
        side_effects(llama, HeadIntervention((Head(0, 1),), offset=torch.ones(1, 16)), ["some text", bad])
