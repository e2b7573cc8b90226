"""Writing that survives a kill: a file or a folder is there whole, old or new, or not there at all."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs


def cache_dir() -> Path:
    """The user's cache folder of this package; everything in it can be made again."""
    return platformdirs.user_cache_path("lofit-lens", appauthor=False)


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8; whoever reads `path` at any moment sees the old text or the new one, whole.

    Args:
        path: the file to write; missing folders above it are made. A symbolic link is followed, not replaced.
        text: its new content, written as it stands (no newline translation).

    Raises:
        OSError: the disc is full or cannot be written to; the old file, if any, is untouched.
    """
    with new_file(path) as scratch:
        scratch.write_bytes(text.encode())


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; on success it becomes `path`, in place of the old file if any, on an exception it vanishes.

    Args:
        path: the file to write; missing folders above it are made. A symbolic link is followed, not replaced.

    Yields:
        A path beside `path`, where nothing is yet.

    Raises:
        OSError: the disc is full or cannot be written to; the old file, if any, is untouched.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    scratch = _scratch(path)
    try:
        yield scratch
        _fsync_file(scratch)
        os.replace(scratch, path)
        _fsync_folder(path.parent)
    except BaseException:
        _remove(scratch)
        raise


def allocate(path: Path, size: int) -> None:
    """Make a file of that many bytes, which the disk then has room for: into a mapped file that it has none for, a write kills.

    Raises:
        OSError: there is no room.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS, Windows
            file.truncate(size)


def write_json_atomically(path: str | Path, value: Any) -> None:
    """`write_text_atomically` of plain JSON values.

    Raises:
        OSError: as `write_text_atomically`.
        ValueError: a value that JSON does not have, such as NaN.
    """
    write_text_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def check_writable(path: str | Path) -> None:
    """Make sure, before hours are spent on what goes there, that `path` can be written.

    Raises:
        OSError: it cannot; says why.
    """
    folder = Path(path).resolve().parent
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".lofit-lens-probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise OSError(f"{path} cannot be written ({error}); choose another place, or make room") from error


def refuge_for(name: str) -> Path:
    """A path of that name in a new temporary folder: where to put results when their own place has become unwritable."""
    return Path(tempfile.mkdtemp(prefix="lofit-lens-rescued-")) / name


@contextlib.contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `path`, on an exception it vanishes.

    A kill at any moment leaves the old folder or the new one, whole. Between two renames the old one is for an instant
    at `.{name}.previous`: readers call `recover_folder` first. One writer at a time for each path; who may have
    several takes a lock.

    Args:
        path: where the folder shall be; missing folders above it are made. A symbolic link is followed, not replaced.
        overwrite: replace the folder that is there, with everything in it.

    Yields:
        A folder beside `path`.

    Raises:
        FileExistsError: `path` exists, and is not to be overwritten or is no folder.
        OSError: the disc is full or cannot be written to; the old folder, if any, is untouched.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    _refuse_existing(path, overwrite)
    _remove_stale(path)
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        yield scratch
        _fsync_tree(scratch)
        _put_in_place(scratch, path, overwrite)
    except BaseException:
        _remove(scratch)
        recover_folder(path)
        raise
    _fsync_folder(path.parent)


def recover_folder(path: str | Path) -> None:
    """Put the previous folder back if a writer was killed between moving it aside and moving the new one in.

    Args:
        path: the folder about to be read.

    Raises:
        OSError: the previous folder is there but cannot be renamed.
    """
    path = Path(path).resolve()
    previous = _previous(path)
    if path.exists() or not previous.exists():
        return
    try:
        previous.rename(path)
    except OSError:
        # Another reader, or the writer, was faster.
        if not path.exists():
            raise


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _scratch(path: Path) -> Path:
    # Host and process id are in the name so that a later writer can tell the litter of a dead one (`_remove_stale`).
    return path.with_name(f"{_scratch_prefix(path)}{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def _scratch_prefix(path: Path) -> str:
    return f".{path.name}.{_host_digest()}."


def this_host() -> str:
    """What process ids are of: the machine, as it was started last, and the container, whose names may be those of others."""
    told = [platform.node()]
    with contextlib.suppress(OSError):  # other systems than Linux
        told += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(told)


@cache
def _host_digest() -> str:
    return hashlib.sha256(this_host().encode()).hexdigest()[:12]


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, but a folder is to be written there: remove it or choose another path")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: pass overwrite=True to replace it, or choose another path")


def _put_in_place(scratch: Path, path: Path, overwrite: bool) -> None:
    while True:
        if path.exists():
            _refuse_existing(path, overwrite)
            _discard(_previous(path), path)
            path.rename(_previous(path))
        try:
            scratch.rename(path)
            break
        except OSError:
            # A reader put the old folder back between the two renames: once more. Anything else is the caller's.
            if not path.exists():
                raise
    _discard(_previous(path), path)


def _discard(folder: Path, path: Path) -> None:
    if folder.exists():
        # Renamed before it is removed, so that what is called `.previous` is always whole.
        _remove(folder.rename(_scratch(path)))


def _remove_stale(path: Path) -> None:
    for entry in path.parent.iterdir():
        if entry.name.startswith(_scratch_prefix(path)) and is_litter(entry):
            _remove(entry)


def is_litter(path: Path) -> bool:
    """Whether this is a draft that a process of this host, which is no more, has left; others may still be written to."""
    match = re.fullmatch(rf"\..*\.{_host_digest()}\.(\d+)\.[0-9a-f]{{8}}\.tmp", path.name)
    return match is not None and not is_alive(int(match[1]))


def _remove(entry: Path) -> None:
    # What cannot be removed now is litter that the next writer removes.
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()


def is_alive(pid: int) -> bool:
    """Whether a process of this host is there; True where that cannot be told."""
    if os.name == "nt":
        # There os.kill(pid, 0) ends the process; the litter stays.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _fsync_file(Path(parent, name))
        _fsync_folder(Path(parent))


def _fsync_file(path: Path) -> None:
    with open(path, "r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
