"""Who is at what: a process takes a lease of a piece of work, and others leave that piece alone until the lease ends.

A lease is a file that its holder touches every few seconds. It ends when the holder lets go of it, when it has not been touched
for `TTL` seconds (the holder is dead, or has lost the disk), or at once when its process, on this host, is no more. Work that
outlives its lease (a laptop asleep) may be done twice; whoever stores results lets the first one stand. Ages are told by
the file system's clock, which all hosts share, and never by a host's own.
"""

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from lofit_lens.files import is_alive, this_host, write_json_atomically

logger = logging.getLogger(__name__)

#: Seconds without a sign of life after which a lease ends.
TTL = 60.0
_LOCK = ".lock"


@contextlib.contextmanager
def leased(path: str | Path, *, ttl: float = TTL) -> Iterator[bool]:
    """Take the lease at `path`, and hold it inside.

    Args:
        path: the lease's file; its folder is made.
        ttl: after so many seconds without a sign of life others may take it.

    Yields:
        Whether it was free: where it is False, somebody else is at it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    if not _taken(path, token, ttl):
        yield False
        return
    let_go = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, token, ttl / 4, let_go), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        let_go.set()
        keeper.join()
        with _locked(path):
            if _read(path).get("token") == token:
                path.unlink()


def is_leased(path: str | Path, *, ttl: float = TTL) -> bool:
    """Whether somebody holds that lease now."""
    path = Path(path)
    return path.exists() and not _has_ended(path, ttl)


def _taken(path: Path, token: str, ttl: float) -> bool:
    with _locked(path):
        if path.exists() and not _has_ended(path, ttl):
            return False
        write_json_atomically(path, {"token": token, "host": this_host(), "pid": os.getpid()})
        return True


def _has_ended(path: Path, ttl: float) -> bool:
    holder = _read(path)
    if holder.get("host") == this_host() and not is_alive(int(holder["pid"])):
        return True
    try:
        return _now(path.parent) - path.stat().st_mtime > ttl
    except FileNotFoundError:  # let go of meanwhile
        return True


def _now(folder: Path) -> float:
    """By the file system's clock."""
    probe = folder / f".now-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _keep(path: Path, token: str, every: float, let_go: threading.Event) -> None:
    while not let_go.wait(every):
        try:
            if _read(path).get("token") == token:
                os.utime(path)
        except OSError as error:  # the disk may come back before the lease ends
            logger.warning("cannot renew %s: %s", path, error)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _locked(path: Path) -> FileLock:
    return FileLock(path.with_name(_LOCK))
