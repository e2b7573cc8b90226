"""Progress bars for long work: shown on a terminal and in a notebook, silent in logs and pipes."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def progress(items: Iterable[Any] | None, description: str, *, total: int | None = None) -> "tqdm[Any]":
    """`items` with a bar around them; close it or iterate it to the end."""
    return tqdm(
        items,
        desc=description,
        total=total,
        leave=False,
        dynamic_ncols=True,
        disable=not (sys.stderr.isatty() or _in_notebook()),
    )
