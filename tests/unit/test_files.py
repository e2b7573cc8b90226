"""A kill, a full disc or a folder that cannot be written to never leaves half of anything."""

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lofit_lens import files

# Run by its path, so that a child starts without the rest of the package (and without torch).
LOAD = f"import os, runpy, signal, sys\nfiles = runpy.run_path({files.__file__!r})\n"

# Ends itself by SIGKILL just before the Nth thing that it asks of the file system.
KILL_AT = """
target, version, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}
def hook(event, args):
    global left
    if event in EVENTS:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""

FILL = """
def fill(folder, version):
    (folder / "deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (folder / name).write_text(version * 5000)
"""

WRITE_FOLDER = """
with files["new_folder"](target, overwrite=True) as folder:
    fill(folder, version)
"""

WRITE_FOREVER = """
import itertools
for version in itertools.count(int(sys.argv[2])):
    with files["new_folder"](sys.argv[1], overwrite=True) as folder:
        fill(folder, f"<{version}>")
"""


def run_child(script: str, *args: object) -> bool:
    """True if it lived to its end."""
    done = subprocess.run([sys.executable, "-c", LOAD + script, *map(str, args)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def read_folder(path: Path) -> str | None:
    """The version written there, after a check that every file has it whole."""
    files.recover_folder(path)
    if not path.exists():
        return None
    texts = {(path / name).read_text() for name in ("a", "b", "deep/c")}
    assert len(texts) == 1, "a mixture of versions"
    assert sorted(p.name for p in path.iterdir()) == ["a", "b", "deep"]
    text = texts.pop()
    version = text[: len(text) // 5000]
    assert text == version * 5000
    return version


def test_text_is_written_as_it_stands(tmp_path):
    path = tmp_path / "made" / "on the way.txt"
    files.write_text_atomically(path, "é\r\n日本\n")
    assert path.read_bytes() == "é\r\n日本\n".encode()
    files.write_text_atomically(path, "")
    assert path.read_bytes() == b""
    assert os.listdir(path.parent) == [path.name]


def test_text_through_a_symbolic_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    files.write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_dir_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir().name == "lofit-lens"
    if sys.platform == "linux":
        assert files.cache_dir() == tmp_path / "lofit-lens"


def test_new_folder(tmp_path):
    path = tmp_path / "made on the way" / "run"
    with files.new_folder(path) as folder:
        assert not path.exists()
        (folder / "a").write_text("1")
    assert os.listdir(path) == ["a"]
    assert os.listdir(path.parent) == ["run"]


def test_existing_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"), files.new_folder(tmp_path):
        pytest.fail("the body ran")


def test_folder_that_appears_during_the_work_is_kept(tmp_path):
    path = tmp_path / "run"
    writer = files.new_folder(path)
    writer.__enter__()
    path.mkdir()
    (path / "other").touch()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        writer.__exit__(None, None, None)
    assert os.listdir(path) == ["other"]
    assert os.listdir(tmp_path) == ["run"]


def test_file_in_the_way_is_kept_even_with_overwrite(tmp_path):
    (tmp_path / "run").write_text("precious")
    with pytest.raises(FileExistsError, match="is a file"), files.new_folder(tmp_path / "run", overwrite=True):
        pytest.fail("the body ran")
    assert (tmp_path / "run").read_text() == "precious"


def test_overwrite_replaces_all_of_the_old_folder(tmp_path):
    path = tmp_path / "run"
    for name in ("old", "new"):
        with files.new_folder(path, overwrite=True) as folder:
            (folder / name).touch()
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["run"]


def test_overwrite_through_a_symbolic_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    with files.new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_exception_leaves_the_old_folder(tmp_path, error):
    path = tmp_path / "run"
    with files.new_folder(path) as folder:
        (folder / "old").touch()

    def write():
        with files.new_folder(path, overwrite=True) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(type(error)):
        write()
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["run"]


def test_reader_that_puts_the_old_folder_back_does_not_stop_the_writer(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    rename, meddled = Path.rename, []

    def rename_with_a_reader_in_between(self, target):
        if Path(target) == path and not self.name.endswith(".previous") and not meddled:
            meddled.append(True)
            files.recover_folder(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_with_a_reader_in_between)
    with files.new_folder(path, overwrite=True) as folder:
        (folder / "new").touch()
    assert meddled
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["run"]


def test_recover_leaves_what_is_there(tmp_path):
    files.recover_folder(tmp_path / "never written")
    (tmp_path / "file").touch()
    files.recover_folder(tmp_path / "file" / "below")
    (tmp_path / "run").mkdir()
    (tmp_path / ".run.previous").mkdir()
    (tmp_path / ".run.previous" / "old").touch()
    files.recover_folder(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


def test_litter_of_the_dead_goes_and_that_of_the_living_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    litter, others = files._scratch(tmp_path / "run"), files._scratch(tmp_path / "run")
    stale = litter.with_name(litter.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
    foreign = stale.with_name(f".run.elsewhere.{stale.name.removeprefix(files._scratch_prefix(tmp_path / 'run'))}")
    for folder in (stale, others, foreign):
        folder.mkdir()
        (folder / "content").touch()
    with files.new_folder(tmp_path / "run"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"run", others.name, foreign.name}


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_step(tmp_path, overwrite):
    path, current, versions = tmp_path / "run", None, []
    if overwrite:
        assert run_child(KILL_AT + FILL + WRITE_FOLDER, path, "<0>", 10_000)
        current = "<0>"
    for step in itertools.count(1):
        finished = run_child(KILL_AT + FILL + WRITE_FOLDER, path, f"<{step}>", step)
        previous = tmp_path / ".run.previous"
        # Else it would come back halved if its successor were removed by hand.
        assert not previous.exists() or sorted(os.listdir(previous)) == ["a", "b", "deep"]
        found = read_folder(path)
        assert found in (current, f"<{step}>")
        assert not finished or found == f"<{step}>"
        versions.append(found)
        current = found if overwrite else None
        if not overwrite:
            shutil.rmtree(path, ignore_errors=True)
        if finished:
            break
    assert step > 15
    assert len(set(versions)) > 1
    assert os.listdir(tmp_path) == (["run"] if overwrite else [])


def test_text_killed_before_every_step(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("<0>" * 50_000)
    for step in itertools.count(1):
        before = path.read_text()
        finished = run_child(KILL_AT + 'files["write_text_atomically"](target, version * 50_000)', path, f"<{step}>", step)
        assert path.read_text() in (before, f"<{step}>" * 50_000)
        if finished:
            break
    assert path.read_text() == f"<{step}>" * 50_000
    assert os.listdir(tmp_path) == ["state.json"]


def test_killed_at_random_moments(tmp_path):
    path, last, random_ = tmp_path / "run", 0, random.Random(0)
    for _ in range(15):
        command = [sys.executable, "-c", LOAD + FILL + WRITE_FOREVER, str(path), str(last + 1)]
        with subprocess.Popen(command) as child:
            deadline = time.monotonic() + 30
            while read_folder_id(path) == last and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(random_.uniform(0, 0.03))
            child.kill()
        found = read_folder(path)
        assert found is not None
        assert int(found[1:-1]) > last
        last = int(found[1:-1])


def read_folder_id(path: Path) -> int:
    """The version of a folder that is being replaced all the time: what is open may vanish."""
    try:
        text = (path / "a").read_text()
    except FileNotFoundError:
        return 0
    return int(text[1 : text.index(">")])


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_folder_that_cannot_be_written_to(tmp_path, parent):
    (tmp_path / "file").touch()
    target = tmp_path / parent / "run"
    if not target.parent.exists():
        pytest.skip("there is no /proc here")
    with pytest.raises(OSError, match=r"run|file"):
        files.write_text_atomically(target, "x")
    with pytest.raises(OSError, match=r"run|file"), files.new_folder(target):
        pytest.fail("the body ran")
    assert os.listdir(tmp_path) == ["file"]


@contextmanager
def small_files_only():
    """As on a full disc, a write fails in its middle (root is not exempt from this)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_write_that_fails_in_its_middle(tmp_path):
    (tmp_path / "text").write_text("old")
    with files.new_folder(tmp_path / "run") as folder:
        (folder / "old").touch()
    with small_files_only(), pytest.raises(OSError, match="too large"):
        files.write_text_atomically(tmp_path / "text", "new" * 1000)
    with (
        small_files_only(),
        pytest.raises(OSError, match="too large"),
        files.new_folder(tmp_path / "run", overwrite=True) as folder,
    ):
        (folder / "new").write_text("new" * 1000)
    assert (tmp_path / "text").read_text() == "old"
    assert os.listdir(tmp_path / "run") == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["run", "text"]


def test_disc_that_is_full_at_the_sync(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("old")
    with files.new_folder(tmp_path / "run") as folder:
        (folder / "old").touch()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text_atomically(tmp_path / "text", "new")
    with pytest.raises(OSError, match="No space left"), files.new_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "text").read_text() == "old"
    assert os.listdir(tmp_path / "run") == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["run", "text"]


def test_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def broken(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match="Input/output"), files.new_folder(path, overwrite=True) as folder:
        (folder / "new").touch()
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["run"]
