"""Texts from data in LaTeX, where many characters are commands."""

_COMMANDS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # Brackets and stars behind a line break are arguments of it.
    **{character: f"{{{character}}}" for character in "[]*"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def escaped(text: str) -> str:
    """A text as LaTeX shows it literally, on one line."""
    return "".join(_COMMANDS.get(character, character) for character in " ".join(text.split()))
