"""Tokens as people can read them: one label for each id, that shows white space and never half a character."""

import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_SPACE = "\N{OPEN BOX}"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: GPT-2's alphabet: a byte is the letter that it is in Latin-1 where that can be seen, else one of those from U+0100 on.
_SEEN = [*range(ord("!"), ord("~") + 1), *range(ord("\N{INVERTED EXCLAMATION MARK}"), 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _SEEN}
_BYTE_OF |= {chr(0x100 + i): byte for i, byte in enumerate(sorted(set(range(0x100)) - set(_SEEN)))}


def token_labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Each token as text: a space as `␣`, a line break and whatever else cannot be seen by itself as Python escapes it.

    Bytes that are no whole character are `<0xE2><0x80>`; an id that the tokenizer does not have is `<id 50299>`.
    """
    # Behind another token: some tokenizers leave out the space of the first.
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = _decoded(tokenizer, anchor)
    return [_label(tokenizer, token, _decoded(tokenizer, [*anchor, token]).removeprefix(before)) for token in ids]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _label(tokenizer: Any, token: int, text: str) -> str:
    stored = tokenizer.convert_ids_to_tokens(token)
    if stored is None:
        return f"<id {token}>"
    if _REPLACEMENT not in text:
        # Accents and vowel signs with nothing in front that they combine with.
        alone = list(itertools.takewhile(lambda character: character == " " or unicodedata.category(character)[0] == "M", text))
        return "".join(_visible(character, seen=i >= len(alone)) for i, character in enumerate(text))
    if not re.fullmatch("<0x[0-9A-F]{2}>", stored) and set(stored) <= set(_BYTE_OF):
        return "".join(f"<0x{_BYTE_OF[character]:02X}>" for character in stored)
    return stored


def _visible(character: str, *, seen: bool) -> str:
    if character == " ":
        return _SPACE
    if seen and character.isprintable() and character not in (_SPACE, "\\"):
        return character
    return character.encode("unicode_escape").decode()
