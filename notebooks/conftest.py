"""How long a notebook may take when `make notebooks` runs it: nbmake's own limit is one cell's."""

import resource
from collections.abc import Generator
from typing import Any

import pytest

#: Of a processor, on one thread: each notebook is promised in four minutes on two.
MOST_SECONDS = 240

_USED = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note the kernel's own processor time, which does not count what else the machine does meanwhile."""
    before = _of_children()
    try:
        return (yield)
    finally:
        item.stash[_USED] = _of_children() - before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Say it, and fail a notebook that took longer than it may."""
    report = yield
    if report.when == "call":
        judge(report, item.stash[_USED])
    return report


def judge(report: Any, seconds: float) -> None:
    """Write into a notebook's report how long it took; it fails if that was too long."""
    report.sections.append(("Time", f"{seconds:.0f} s of a processor"))
    if report.outcome == "passed" and seconds > MOST_SECONDS:
        report.outcome = "failed"
        report.longrepr = f"took {seconds:.0f} s of a processor, more than {MOST_SECONDS}; make what it runs smaller"


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
