"""Find local data files and read their records, with errors that say which file, which line and what to do."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Names the folder of data files when a task is not given one.
DATA_VARIABLE = "LOFIT_LENS_DATA"

_SPACE = frozenset(" \t\r\n")


def data_file(name: str, data_dir: str | Path | None = None) -> Path:
    """The path of a data file.

    Args:
        name: where the file is inside the data folder, such as "clutrr/train.json".
        data_dir: the data folder; without it, the one that the environment variable LOFIT_LENS_DATA names.

    Raises:
        FileNotFoundError: no folder is known, or the file is not in it.
    """
    source = "data_dir" if data_dir else f"the environment variable {DATA_VARIABLE}"
    root = data_dir or os.environ.get(DATA_VARIABLE)
    way_out = f"pass data_dir=..., or set {DATA_VARIABLE}, to a folder that holds {name}"
    if not root:
        raise FileNotFoundError(f"looked for the data file {name}, but no data folder is known; {way_out}")
    path = Path(root).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(f"looked for the data file {path} (folder: {source}), which is not there; {way_out}")
    return path


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, and where it begins: its line, and its number among the records (both from 1)."""

    values: Mapping[str, Any]
    path: Path
    line: int
    number: int

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def error(self, problem: str) -> ValueError:
        """An error to raise about this record; it begins with the place."""
        return _error(self.path, self.line, self.number, problem)


def read_records(path: Path, fields: Mapping[str, type]) -> list[Record]:
    """Read the objects of a JSON list, or of a `.jsonl` file (one on each line; empty lines are skipped).

    Args:
        path: the file, UTF-8.
        fields: the fields that every record must have, and their types; other fields may be there.

    Raises:
        ValueError: not UTF-8, not JSON, or a record lacks a field or has it with another type.
    """
    parts = _lines if path.suffix == ".jsonl" else _list_items
    return [_checked(*part, path, fields) for part in parts(_text(path), path)]


def _error(path: Path, line: int, number: int, problem: str) -> ValueError:
    return ValueError(f"{path}, line {line} (record {number}): {problem}")


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: got the byte {raw[error.start]:#04x}, wanted UTF-8 text") from error


def _lines(text: str, path: Path) -> Iterator[tuple[Any, int, int]]:
    number = 0
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string.
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            number += 1
            try:
                yield json.loads(content), line, number
            except json.JSONDecodeError as error:
                raise _error(path, line, number, f"got no JSON ({error.msg}, column {error.colno})") from error


def _list_items(text: str, path: Path) -> Iterator[tuple[Any, int, int]]:
    """The items one by one: `json.loads` of the whole does not say at which line each begins."""
    decoder = json.JSONDecoder()
    position, line, number, mark = 0, 1, 0, "["
    while True:
        at_mark = _after_space(text, position)
        line += text.count("\n", position, at_mark)
        if number and text.startswith("]", at_mark):
            break
        if not text.startswith(mark, at_mark):
            got = text[at_mark : at_mark + 20] or "the end of the file"
            raise _error(path, line, max(number, 1), f"got {got!r}, wanted {mark!r} of a JSON list of objects")
        item_start = _after_space(text, at_mark + 1)
        line += text.count("\n", at_mark, item_start)
        if not number and text.startswith("]", item_start):
            at_mark = item_start
            break
        number += 1
        try:
            item, end = decoder.raw_decode(text, item_start)
        except json.JSONDecodeError as error:
            raise _error(path, line, number, f"got no JSON ({error.msg}, line {error.lineno})") from error
        yield item, line, number
        line += text.count("\n", item_start, end)
        position, mark = end, ","
    if text[at_mark + 1 :].strip():
        raise _error(path, line, number, f"got {text[at_mark + 1 :].strip()[:20]!r} after the list, wanted nothing")


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in _SPACE:
        position += 1
    return position


def _checked(item: Any, line: int, number: int, path: Path, fields: Mapping[str, type]) -> Record:
    if not isinstance(item, dict):
        raise _error(path, line, number, f"got {type(item).__name__}, wanted an object with the fields {sorted(fields)}")
    record = Record(item, path, line, number)
    for name, wanted in fields.items():
        if name not in item:
            raise record.error(f"got the fields {sorted(item)}, wanted {name!r} too")
        if not isinstance(item[name], wanted):
            got = type(item[name]).__name__
            raise record.error(f"got {item[name]!r} ({got}) for {name!r}, wanted {wanted.__name__}")
    return record
