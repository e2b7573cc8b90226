"""Tokenising and masking of any text whatever, with four kinds of tokenizers: the mask covers exactly the answer's tokens."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lofit_lens.batches import collate, encode, padded

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
CORPUS = ["the cat sat on the mat; a cat!", "Où est le chat ? Là-bas.", "Q: what?\nA: 12,345", "日本の猫 🎉"] * 3


def byte_level() -> Tokenizer:
    """GPT-2's and SmolLM2's kind: merges over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback(*, prepend: bool) -> Tokenizer:
    """Llama 2's kind (with a space in front of every text) and Gemma's: unknown characters become bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *sorted(set("".join(CORPUS[:1])) - {" "})]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    steps = [normalizers.Prepend("\u2581")] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's other kind: whole pieces by likelihood, an unknown token for what it has never seen."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def model_with(tokenizer: Tokenizer, *, bos: bool) -> SimpleNamespace:
    """As much of a model as tokenising looks at."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    cfg = SimpleNamespace(default_prepend_bos=bos, n_ctx=10_000, device="cpu")
    return SimpleNamespace(cfg=cfg, tokenizer=fast)


MODELS = {
    "byte-level": model_with(byte_level(), bos=False),
    "byte fallback": model_with(byte_fallback(prepend=False), bos=True),
    "byte fallback, space in front": model_with(byte_fallback(prepend=True), bos=True),
    "unigram": model_with(unigram(), bos=True),
}
#: Half of the texts are any unicode at all, half are made of what tokenizers split at.
TEXT = st.text(min_size=1, max_size=30) | st.text(" \nabt.:,Qé猫🎉\u2581", min_size=1, max_size=30)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", MODELS)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), eos=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_mask_covers_exactly_the_answers_tokens(name, pairs, eos):
    model = MODELS[name]
    prompts, answers = zip(*pairs, strict=True)
    kept = encode(model, prompts, answers, eos=eos)
    batch = collate(model, kept)
    for row, sequence in enumerate(kept):
        own = batch.rows == row
        assert tuple(batch.targets[own].tolist()) == sequence.answer
        assert batch.columns[own].tolist() == list(range(len(sequence.prompt) - 1, len(sequence) - 1))
        width = int(batch.attention_mask[row].sum())
        assert batch.attention_mask[row, :width].all()
        assert tuple(batch.tokens[row, :width].tolist()) == (sequence.prompt + sequence.answer)[:-1]
        assert (sequence.answer[-1] == model.tokenizer.eos_token_id) or not eos


@pytest.mark.usefixtures("as_users_run_it")
@given(answer=TEXT, prompt=TEXT)
@settings(max_examples=200, deadline=None)
def test_an_answers_tokens_say_what_the_answer_says(prompt, answer):
    """With tokens for all bytes nothing is lost, whatever stands before it."""
    model = MODELS["byte-level"]
    [sequence] = encode(model, [prompt], [answer], eos=False)
    decode = model.tokenizer.decode
    assert decode(sequence.answer, clean_up_tokenization_spaces=False) == answer
    assert decode(sequence.prompt + sequence.answer, clean_up_tokenization_spaces=False) == prompt + answer


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", MODELS)
def test_an_empty_side_is_refused(name):
    with pytest.raises(ValueError, match="the answer '' tokenises to nothing"):
        encode(MODELS[name], ["Q"], [""], eos=True)
    if MODELS[name].cfg.default_prepend_bos:
        assert len(encode(MODELS[name], [""], ["a"], eos=False)[0].prompt) == 1
    else:
        with pytest.raises(ValueError, match="the prompt '' tokenises to nothing"):
            encode(MODELS[name], [""], ["a"], eos=True)


@pytest.mark.usefixtures("as_users_run_it")
@given(rows=st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=9), min_size=1, max_size=6), left=st.booleans())
def test_padding_is_on_one_side_and_masked(rows, left):
    tokens, mask = padded(MODELS["unigram"], [tuple(row) for row in rows], side="left" if left else "right")
    for row, ids in enumerate(rows):
        assert tokens[row][mask[row].bool()].tolist() == ids
        edge = mask[row].flip(0) if left else mask[row]
        assert edge.tolist() == [1] * len(ids) + [0] * (tokens.shape[1] - len(ids))
