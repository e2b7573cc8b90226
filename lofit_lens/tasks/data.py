"""Find local data files and read their records, with errors that say which file, which line and what to do."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from lofit_lens.tasks.sources import SOURCES, downloads_folder

#: Names the folder of data files when a task is not given one.
DATA_VARIABLE = "LOFIT_LENS_DATA"

#: Endings of the names of files that `read_records` reads.
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_SPACE = frozenset(" \t\r\n")


def data_file(name: str, data_dir: str | Path | None = None) -> Path:
    """The path of a data file: in `data_dir` if it is given, and nowhere else; if not, in the folder that the environment
    variable LOFIT_LENS_DATA names, and then among the downloaded ones.

    Args:
        name: where the file is inside a folder, such as "clutrr/train.json". If it is not there, one whose name has another
            ending that `read_records` knows is taken.
        data_dir: the only folder to look in.

    Raises:
        FileNotFoundError: it is not there.
    """
    if data_dir:
        folders = {"data_dir": data_dir}
        way_out = f"put it there, or leave data_dir out to read the folder of {DATA_VARIABLE} and the downloads"
    else:
        named = {f"the environment variable {DATA_VARIABLE}": os.environ.get(DATA_VARIABLE), "downloads": downloads_folder()}
        folders = {source: folder for source, folder in named.items() if folder}
        way_out = f"pass data_dir=..., or set {DATA_VARIABLE}, to a folder that holds it"
        if (task := name.split("/")[0]) in SOURCES:
            way_out += f", or download it: lofit-lens download {task}"
    paths = {source: Path(folder).expanduser() / name for source, folder in folders.items()}
    for path in paths.values():
        for suffix in (path.suffix, *SUFFIXES):
            if (found := path.with_suffix(suffix)).is_file():
                return found
    looked = " and ".join(f"{path} (folder: {source})" for source, path in paths.items())
    raise FileNotFoundError(f"looked for the data file {looked}, which is not there; {way_out}")


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, and where it begins: its line, and its number among the records (both from 1)."""

    values: Mapping[str, Any]
    path: Path
    line: int
    number: int

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def place(self) -> str:
        """Where it came from, for `Example.info`."""
        return f"{self.path.name}, record {self.number}"

    def error(self, problem: str) -> ValueError:
        """An error to raise about this record; it begins with the place."""
        return _error(self.path, self.line, self.number, problem)


def read_records(path: Path, fields: Mapping[str, type]) -> list[Record]:
    """Read the objects of a `.json` list or of a `.jsonl` file (one on each line; empty lines are skipped), or the rows of a
    `.csv`, `.tsv` (tabs between cells) or `.parquet` table.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        fields: the fields that every record must have, and their types; other fields may be there.

    Raises:
        ValueError: another kind of file, not UTF-8, not what its name says, or a record lacks a field or has it with another
            type; with the file, and its line and record as far as they are known.
    """
    if path.suffix == ".parquet":
        rows = enumerate(_parquet_rows(path), start=1)
        return [_checked(row, number, number, path, fields) for number, row in rows]
    parts = {".json": _list_items, ".jsonl": _lines, ".csv": _table_rows, ".tsv": _table_rows}.get(path.suffix)
    if parts is None:
        raise ValueError(f"{path}: got a file whose name ends in {path.suffix!r}, wanted one of {', '.join(SUFFIXES)}")
    return [_checked(*part, path, fields) for part in parts(read_text(path), path)]


def first_of(records: list[Record], wanted: int | None, split: str) -> list[Record]:
    """The first records of a file, or all.

    Raises:
        ValueError: more are wanted than there are.
    """
    if wanted is not None and wanted > len(records):
        where = f" in {records[0].path}" if records else ""
        raise ValueError(f"n_{split}={wanted} is more than the {len(records)} records{where}; ask for fewer")
    return records[:wanted]


def _error(path: Path, line: int, number: int, problem: str) -> ValueError:
    return ValueError(f"{path}, line {line} (record {number}): {problem}")


def read_text(path: Path) -> str:
    """A whole file, without the byte order mark that some programs put first.

    Raises:
        ValueError: not UTF-8.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
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


def _table_rows(text: str, path: Path) -> Iterator[tuple[Any, int, int]]:
    """The rows below the header, as strings; a row may take several lines, and is named by its first."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, line = 0, 1
    while True:
        try:
            row = _next_row(reader, len(text))
        except csv.Error as error:
            raise _error(path, line, number + 1, f"got no CSV ({error})") from error
        if row is None:
            return
        if header is None:
            header = row
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"{path}, line {line}: got the columns {twice} twice, wanted a name for each column")
        elif row:
            number += 1
            if len(row) != len(header):
                raise _error(path, line, number, f"got {len(row)} cells, wanted {len(header)}, as in the first line")
            yield dict(zip(header, row, strict=True)), line, number
        line = reader.line_num + 1


def _next_row(reader: Iterator[list[str]], longest: int) -> list[str] | None:
    # The module's limit, 131,072 characters a cell, holds for the whole process: it is another for this row only.
    usual = csv.field_size_limit(longest)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(usual)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        try:
            table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: got no parquet file, or a damaged one ({error})") from error
    try:
        return table.to_pylist()
    except UnicodeDecodeError as error:
        number = next(number for number in range(1, table.num_rows + 1) if not _is_unicode(table.slice(number - 1, 1)))
        raise _error(path, number, number, f"got the byte {error.object[error.start]:#04x}, wanted UTF-8 text") from error


def _is_unicode(row: pyarrow.Table) -> bool:
    try:
        row.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


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
        if not isinstance(item[name], (wanted, int) if wanted is float else wanted):
            got = type(item[name]).__name__
            raise record.error(f"got {item[name]!r} ({got}) for {name!r}, wanted {wanted.__name__}")
    return record
