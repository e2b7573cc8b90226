"""Data files are found, and a bad record is refused with its file and its line."""

import csv
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lofit_lens.tasks import sources
from lofit_lens.tasks.data import DATA_VARIABLE, data_file, read_records

FIELDS = {"text": str, "size": int}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_data_dir_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("given", "named"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, "a.json", "[]")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "named"))
    assert data_file("a.json") == tmp_path / "named" / "a.json"
    assert data_file("a.json", tmp_path / "given") == tmp_path / "given" / "a.json"


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_known(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(DATA_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(DATA_VARIABLE, value)
    with pytest.raises(FileNotFoundError, match=r"looked for .*clutrr/train\.json.*data_dir=.*LOFIT_LENS_DATA"):
        data_file("clutrr/train.json")


def test_missing_file_says_where_it_was_looked_for_and_why_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    wanted = re.escape(str(tmp_path / "clutrr" / "train.json"))
    with pytest.raises(FileNotFoundError, match=wanted + ".*environment variable LOFIT_LENS_DATA.*pass data_dir"):
        data_file("clutrr/train.json")
    with pytest.raises(FileNotFoundError, match=wanted + r".*\(folder: data_dir\).*leave data_dir out"):
        data_file("clutrr/train.json", tmp_path)


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_list_records_know_their_line(tmp_path: Path, indent: int | None) -> None:
    items = [{"text": "two\nlines, } and ]", "size": 1, "more": [{"a": None}]}, {"text": "é\u2028", "size": -2}]
    text = "\n\n" + json.dumps(items, indent=indent, ensure_ascii=False) + "\n"
    records = read_records(written(tmp_path, "a.json", text), FIELDS)
    assert [dict(record.values) for record in records] == items
    assert [record.number for record in records] == [1, 2]
    # Where an object begins, found in another way: objects of the list are indented by exactly `indent`.
    opening = "{" if not indent else " " * indent + "{"
    starts = [i for i, line in enumerate(text.split("\n"), 1) if line == opening] if indent is not None else [3, 3]
    if indent == 0:
        starts = [starts[0], starts[-1]]  # the inner object stands between them
    assert [record.line for record in records] == starts


def test_jsonl_records_know_their_line(tmp_path: Path) -> None:
    text = '{"text": "a\u2028b", "size": 1}\n\n  \n{"text": "c", "size": 2}'
    records = read_records(written(tmp_path, "a.jsonl", text), FIELDS)
    assert [(record["text"], record["size"], record.line, record.number) for record in records] == [
        ("a\u2028b", 1, 1, 1),
        ("c", 2, 4, 2),
    ]


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.json", " [\n] \n"), ("a.jsonl", ""), ("a.jsonl", "\n\n")])
def test_no_records(tmp_path: Path, name: str, text: str) -> None:
    assert read_records(written(tmp_path, name, text), FIELDS) == []


GOOD = '{"text": "a", "size": 1}'

BAD_LISTS = {
    "missing field": (f'[\n{GOOD},\n{{"text": "b"}}]', r"line 3 \(record 2\): got the fields \['text'\], wanted 'size' too"),
    "wrong type": (f'[{GOOD},\n{{"text": 7,\n"size": 1}}]', r"line 2 \(record 2\): got 7 \(int\) for 'text', wanted str"),
    "not an object": (f"[{GOOD},\n\n3]", r"line 3 \(record 2\): got int, wanted an object with the fields \['size', 'text'\]"),
    "broken object": (f'[\n{GOOD},\n{{"text": \n"b", "size" 1}}\n]', r"line 3 \(record 2\): got no JSON \(.*line 4\)"),
    "no comma": (f"[\n{GOOD}\n{GOOD}]", r"line 3 \(record 1\): got '\{.*', wanted ','"),
    "trailing comma": (f"[\n{GOOD},\n]", r"line 3 \(record 2\): got no JSON"),
    "cut off": (f"[\n{GOOD},\n{GOOD}\n", r"record 2\): got 'the end of the file', wanted ','"),
    "an object": (GOOD, r"line 1 \(record 1\): got '\{.*', wanted '\['"),
    "empty file": ("", r"line 1 \(record 1\): got 'the end of the file', wanted '\['"),
    "text behind": (f"[{GOOD}]\n{GOOD}", r"line 1 \(record 1\): got '\{.*' after the list"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_list_is_refused_with_file_and_line(tmp_path: Path, case: str) -> None:
    text, message = BAD_LISTS[case]
    path = written(tmp_path, "a.json", text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        read_records(path, FIELDS)


BAD_LINES = {
    "missing field": (f'{GOOD}\n\n{{"size": 1}}\n', r"line 3 \(record 2\): got the fields \['size'\], wanted 'text' too"),
    "wrong type": (f'{GOOD}\n{{"text": "b", "size": "1"}}', r"line 2 \(record 2\): got '1' \(str\) for 'size', wanted int"),
    "a list": (f"[{GOOD}]", r"line 1 \(record 1\): got list, wanted an object"),
    "broken": (f'{GOOD}\n{{"text": \n', r"line 2 \(record 2\): got no JSON \(.*column"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_refused_with_file_and_line(tmp_path: Path, case: str) -> None:
    text, message = BAD_LINES[case]
    path = written(tmp_path, "a.jsonl", text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ", " + message):
        read_records(path, FIELDS)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[\n{"text": "caf\xe9"}]')
    with pytest.raises(ValueError, match=re.escape(str(path)) + ", line 2: got the byte 0xe9, wanted UTF-8"):
        read_records(path, FIELDS)


TABLE = "text,size\na,1\n"


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    for name, text in {"a.csv": TABLE, "a.tsv": TABLE.replace(",", "\t"), "a.jsonl": GOOD, "a.json": f"[{GOOD}]"}.items():
        (record,) = read_records(written(tmp_path, name, "\ufeff" + text), {"text": str})
        assert record["text"] == "a"
        assert set(record.values) == {"text", "size"}


def test_cells_between_tabs(tmp_path: Path) -> None:
    (record,) = read_records(written(tmp_path, "a.tsv", 'text\tsize\n"one, two\tthree"\t1\n'), {"text": str})
    assert record.values == {"text": "one, two\tthree", "size": "1"}


@pytest.mark.parametrize("rows", ["{cell},1\n", '"{cell}"'])
def test_a_cell_may_be_of_any_length_and_the_limit_of_others_stays(tmp_path: Path, rows: str) -> None:
    limit = csv.field_size_limit()
    cell = "a" * (limit + 1)
    header = "text,size\n" if "1" in rows else "text\n"
    (record,) = read_records(written(tmp_path, "a.csv", header + rows.format(cell=cell)), {"text": str})
    assert record["text"] == cell
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,size,text\na,1,b\n", r"line 1: got the columns \['text'\] twice"),
        ("a.tsv", "text\tsize\na\n", r"line 2 \(record 1\): got 1 cells, wanted 2"),
        ("a.txt", TABLE, r"ends in '\.txt', wanted one of \.jsonl, \.json, \.csv, \.tsv, \.parquet"),
        ("a.parquet", TABLE, "got no parquet file, or a damaged one"),
    ],
)
def test_a_bad_table_is_refused_with_its_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        read_records(path, {})


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_damaged_page_of_a_parquet_file(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {i}" for i in range(1000)]})
    pyarrow.parquet.write_table(table, path, compression=compression, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[10:30] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": got no parquet file, or a damaged one"):
        read_records(path, {"text": str})


def test_text_of_a_parquet_file_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pyarrow.array([b"tea", b"caf\xe9"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(ValueError, match=re.escape(str(path)) + r", line 2 \(record 2\): got the byte 0xe9, wanted UTF-8"):
        read_records(path, {"text": str})
    with pytest.raises(FileNotFoundError, match=r"b\.parquet"):
        read_records(tmp_path / "b.parquet", {"text": str})
