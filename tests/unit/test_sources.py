"""Downloads, from a real server on this machine."""

import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lofit_lens.tasks import TASKS, open_web_text, sources
from lofit_lens.tasks.data import data_file
from lofit_lens.tasks.sources import SOURCES, DataFile, download, downloads_folder

CONTENT = b'[{"a": 1}]'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
#: Of `git hash-object`.
GIT_NAME = "009d5dbb5a6b6db440103b3391d64757ebb969b2"
#: What the hub says of a file in its headers; each test may say something else.
STATED = {"X-Repo-Commit": "c0ffee", "X-Linked-Etag": f'"{DIGEST}"'}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that has `file.json`."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.json").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in STATED.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("LOFIT_LENS_DATA", raising=False)


def published(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None) -> None:
    monkeypatch.setitem(SOURCES, "svamp", (DataFile("svamp/SVAMP.json", url, sha256, "MIT"),))


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_file_is_fetched_once_and_found(server: str, monkeypatch: pytest.MonkeyPatch, sha256: str | None) -> None:
    published(monkeypatch, f"{server}/file.json", sha256)
    with pytest.raises(FileNotFoundError, match="lofit-lens download svamp"):
        data_file("svamp/SVAMP.json")
    folder = download("svamp")
    assert (folder / "svamp" / "SVAMP.json").read_bytes() == CONTENT
    assert data_file("svamp/SVAMP.json") == folder / "svamp" / "SVAMP.json"
    note = json.loads((folder / "svamp" / "SVAMP.json.source.json").read_text())
    assert (note["sha256"], note["licence"], note["revision"]) == (DIGEST, "MIT", None if sha256 else "c0ffee")
    published(monkeypatch, f"{server}/gone.json", sha256)
    assert download("svamp") == folder
    (folder / "svamp" / "SVAMP.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=f"wanted {DIGEST}: remove it"):
        download("svamp")


def test_a_download_is_found_behind_the_environment_variable_but_not_behind_a_given_folder(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, f"{server}/file.json", DIGEST)
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("LOFIT_LENS_DATA", str(tmp_path / "named"))
    with pytest.raises(FileNotFoundError, match=r"named.*cache.*lofit-lens download svamp"):
        data_file("svamp/SVAMP.json")
    folder = download("svamp")
    assert data_file("svamp/SVAMP.json") == folder / "svamp" / "SVAMP.json"
    with pytest.raises(FileNotFoundError) as refused:
        data_file("svamp/SVAMP.json", tmp_path / "named")
    assert "lofit-lens download" not in str(refused.value)
    own = tmp_path / "named" / "svamp" / "SVAMP.jsonl"
    own.parent.mkdir()
    own.write_text("")
    assert data_file("svamp/SVAMP.json") == own


def test_open_web_text_is_fetched_when_it_is_first_wanted(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served" / "train.parquet"
    pd.DataFrame({"text": ["One.", "Two.", "Three."]}).to_parquet(served)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    file = DataFile("open_web_text/train.parquet", f"{server}/train.parquet", digest, "CC0 1.0")
    monkeypatch.setitem(SOURCES, "open_web_text", (file,))
    assert set(open_web_text(3)) == {"One.", "Two.", "Three."}
    served.unlink()
    assert len(open_web_text(2)) == 2
    with pytest.raises(FileNotFoundError):
        open_web_text(2, data_dir=tmp_path / "elsewhere")


def test_a_file_of_the_hub_must_be_what_the_hub_states(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, f"{server}/file.json", None)
    monkeypatch.setitem(STATED, "X-Linked-Etag", f'"{"0" * 64}"')
    with pytest.raises(ValueError, match=r"wanted 0000.*not what .* is known to hold, so not kept"):
        download("svamp")
    assert list((downloads_folder() / "svamp").iterdir()) == []
    # A file that the hub keeps in git is known by git's name for it.
    monkeypatch.setitem(STATED, "X-Linked-Etag", '"0123456789012345678901234567890123456789"')
    with pytest.raises(ValueError, match=rf"has git blob SHA-1 {GIT_NAME}, wanted 0123.*so not kept"):
        download("svamp")
    monkeypatch.setitem(STATED, "X-Linked-Etag", '"v1"')
    with pytest.raises(ValueError, match="got the etag 'v1', wanted a checksum"):
        download("svamp")
    assert list((downloads_folder() / "svamp").iterdir()) == []
    monkeypatch.setitem(STATED, "X-Linked-Etag", f'"{GIT_NAME}"')
    download("svamp")
    assert json.loads((downloads_folder() / "svamp" / "SVAMP.json.source.json").read_text())["sha256"] == DIGEST


def test_truthfulqas_examples_are_taken_out_of_its_code(request: pytest.FixtureRequest) -> None:
    """A presets.py of that form, with the published examples, gives the published prompt, whose checksum is in the table."""
    prompt = (request.getfixturevalue("published") / "truthfulqa" / "mc_prompt.txt").read_text(encoding="utf-8")
    instruction, examples = prompt.split("\n\n", 1)
    (file,) = [file for file in SOURCES["truthfulqa"] if file.derive]
    assert file.derive is not None
    assert file.derive(f'NULL_PRIMER = ""\n\nQA_PRIMER = """{examples}"""\n') == prompt
    assert hashlib.sha256(prompt.encode()).hexdigest() == file.sha256
    assert instruction == sources._INSTRUCTION
    with pytest.raises(ValueError, match="without QA_PRIMER"):
        file.derive("OTHER = 1")


def test_another_file_than_the_published_one_is_refused_and_not_kept(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, f"{server}/file.json", "0" * 64)
    with pytest.raises(ValueError, match=f"has SHA-256 {DIGEST}, wanted 0000"):
        download("svamp")
    assert list((downloads_folder() / "svamp").iterdir()) == []


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_what_cannot_be_fetched_is_named_with_the_way_out(
    server: str, monkeypatch: pytest.MonkeyPatch, sha256: str | None
) -> None:
    published(monkeypatch, f"{server}/gone.json", sha256)
    with pytest.raises(ConnectionError, match=r"gone\.json could not be fetched.*svamp/SVAMP\.json and pass data_dir"):
        download("svamp")
    assert list(downloads_folder().rglob("*.json")) == []


def test_only_published_tasks_can_be_downloaded() -> None:
    with pytest.raises(ValueError, match="nothing to download for 'kinship'; published tasks are truthfulqa, mquake"):
        download("kinship")


def test_every_address_names_a_commit_and_only_the_hub_may_be_asked_for_a_checksum() -> None:
    for files in SOURCES.values():
        for file in files:
            assert len(re.findall(r"/[0-9a-f]{40}/", file.url)) == 1, file.name
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.sha256 is not None or file.url.startswith("https://huggingface.co/datasets/")


def test_checksums_are_those_of_the_files_at_hand(request: pytest.FixtureRequest) -> None:
    assert set(SOURCES) - {"open_web_text"} < set(TASKS)
    folder = request.getfixturevalue("published")
    checked = 0
    for files in SOURCES.values():
        for file in files:
            if file.sha256 is not None and (folder / file.name).exists():
                assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
                checked += 1
    # ARC is there in another form than the hub's.
    assert checked == 14
