"""Downloads, from a real server on this machine."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lofit_lens.tasks import TASKS, sources
from lofit_lens.tasks.data import data_file
from lofit_lens.tasks.sources import SOURCES, DataFile, download, downloads_folder

CONTENT = b'[{"a": 1}]'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that has `file.json`."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.json").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
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


@pytest.mark.parametrize("sha256", [hashlib.sha256(CONTENT).hexdigest(), None])
def test_a_file_is_fetched_once_and_found(server: str, monkeypatch: pytest.MonkeyPatch, sha256: str | None) -> None:
    published(monkeypatch, f"{server}/file.json", sha256)
    with pytest.raises(FileNotFoundError, match="lofit-lens download svamp"):
        data_file("svamp/SVAMP.json")
    folder = download("svamp")
    assert (folder / "svamp" / "SVAMP.json").read_bytes() == CONTENT
    assert data_file("svamp/SVAMP.json") == folder / "svamp" / "SVAMP.json"
    published(monkeypatch, f"{server}/gone.json", sha256)
    assert download("svamp") == folder


def test_another_file_than_the_published_one_is_refused_and_not_kept(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, f"{server}/file.json", "0" * 64)
    with pytest.raises(ValueError, match=f"has SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, wanted 0000"):
        download("svamp")
    assert list((downloads_folder() / "svamp").iterdir()) == []


def test_what_cannot_be_fetched_is_named_with_the_way_out(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, f"{server}/gone.json", None)
    with pytest.raises(ConnectionError, match=r"gone\.json could not be fetched.*svamp/SVAMP\.json and pass data_dir"):
        download("svamp")
    assert list((downloads_folder() / "svamp").iterdir()) == []


def test_only_published_tasks_can_be_downloaded() -> None:
    with pytest.raises(ValueError, match="nothing to download for 'kinship'; published tasks are truthfulqa, mquake"):
        download("kinship")


def test_checksums_are_those_of_the_files_at_hand(request: pytest.FixtureRequest) -> None:
    assert set(SOURCES) - {"open_web_text"} < set(TASKS)
    folder = request.getfixturevalue("published")
    checked = 0
    for files in SOURCES.values():
        for file in files:
            if file.sha256 is not None:
                assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
                checked += 1
    assert checked == 13
