"""Labels of tokens: what is invisible shows, half characters do not break, and none stands for two tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lofit_lens.tiny import tiny_tokenizer
from lofit_lens.vocabulary import token_labels

#: Written as byte-level tokenizers store them: a space is U+0120, a line break U+010A, bytes E2 80 are U+00E2 U+0122.
BYTE_LEVEL = {
    "a": "a",
    "\u0120father": "\u2423father",
    "father": "father",
    "\u010a\u010a": r"\n\n",
    "\\": r"\\",
    "n": "n",
    "\u00d0\u00b1\u00d1\u0122\u00d0\u00b0": "\u0431\u0440\u0430",
    "\u00f0\u0141\u013b\u0124": "\N{SLIGHTLY SMILING FACE}",
    "\u00e2\u0122": "<0xE2><0x80>",
    "\u0120\u00e2": "<0x20><0xE2>",
    "\u00e2\u0122\u012d": r"\u200b",
    "\u00e2\u0132\u00a3": r"\u2423",
    # Vowel signs (U+0940, U+0902) combine with what is in front of them, and are a box where that is nothing.
    "\u00e0\u00a5\u0122": r"\u0940",
    "\u0120\u00e0\u00a5\u0122\u00e0\u00a4\u0124": "\u2423" + r"\u0940\u0902",
    "n\u00e0\u00a5\u0122": "n\u0940",
}


@pytest.fixture
def byte_level():
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(BYTE_LEVEL)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture
def sentencepiece():
    """Drops the space in front of what it decodes, as Llama 2's does, falls back on bytes, and tidies up what it decodes."""
    tokens = ["\u2581a", "\u2581father", "father", "<0x0A>", "<0xE2>", "\u2581", ".", "\u2581."]
    tokenizer = Tokenizer(models.Unigram([(token, 0.0) for token in tokens], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


def test_white_space_shows_and_half_characters_are_bytes(byte_level):
    assert token_labels(byte_level, range(len(BYTE_LEVEL))) == list(BYTE_LEVEL.values())


def test_special_tokens_and_ids_beyond_the_tokenizer_have_names(byte_level):
    end = byte_level.eos_token_id
    assert token_labels(byte_level, [end, end + 7]) == ["<eos>", f"<id {end + 7}>"]


def test_a_space_that_decoding_drops_in_front_shows_too(sentencepiece):
    assert token_labels(sentencepiece, range(8)) == [
        *("\u2423a", "\u2423father", "father", r"\n", "<0xE2>", "\u2423", ".", "\u2423."),
    ]


def test_no_two_tokens_have_one_label():
    tokenizer = tiny_tokenizer()
    labels = token_labels(tokenizer, range(len(tokenizer)))
    assert len(set(labels)) == len(tokenizer) == 259
    assert not any(character.isspace() or character == "\N{REPLACEMENT CHARACTER}" for label in labels for character in label)
