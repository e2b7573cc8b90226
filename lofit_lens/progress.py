"""Progress bars for long work: shown on a terminal and in a notebook, silent in logs and pipes."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging


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


@contextlib.contextmanager
def hub_bars_on_a_terminal_only() -> Iterator[None]:
    """Inside, the bars that transformers draws itself are shown on a terminal only."""
    if sys.stderr.isatty() or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    # The GGUF reader draws a bar of its own, which transformers' switch does not turn off.
    reader, bar = modeling_gguf_pytorch_utils.__dict__, modeling_gguf_pytorch_utils.__dict__.get("tqdm")
    reader["tqdm"] = lambda iterable, **_: iterable
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        reader["tqdm"] = bar
