"""Ordinary text to measure `side_effects` on: OpenWebText, which is taken when none is given, a file's, or a task's.

OpenWebText is the one file that is fetched when it is first wanted, without `lofit-lens download`: whoever gives no text asks
for it. Give text of your own, or a task's, and nothing leaves the machine.
"""

import random
from pathlib import Path

from lofit_lens.tasks.base import Task
from lofit_lens.tasks.data import data_file, first_of, read_records
from lofit_lens.tasks.sources import download


def open_web_text(n_texts: int = 100, *, seed: int = 42, data_dir: str | Path | None = None) -> list[str]:
    """Texts drawn from OpenWebText's first 10,000, which ITI and LoFiT take 100 of; fetched from the hub the first time.

    Args:
        n_texts: how many.
        seed: which.
        data_dir: the only folder to look for `open_web_text/train.parquet` (or `.jsonl`; column `text`) in; without it, that
            of LOFIT_LENS_DATA, then the downloads, then the hub.

    Raises:
        FileNotFoundError: the file is not in `data_dir`.
        ConnectionError: it is not on this machine, and the hub is out of reach.
        ValueError: more texts are wanted than there are, or a record is bad.
    """
    records = read_records(_open_web_text_file(data_dir), {"text": str})
    random.Random(seed).shuffle(records)
    return [record["text"] for record in first_of(records, n_texts, "texts")]


def _open_web_text_file(data_dir: str | Path | None) -> Path:
    name = "open_web_text/train.parquet"
    try:
        return data_file(name, data_dir)
    except FileNotFoundError:
        if data_dir is not None:
            raise
    try:
        return download("open_web_text") / name
    except ConnectionError as error:
        raise ConnectionError(f"{error}; or measure on other text (texts=..., --text): a file's, or a task's") from error


def texts_of(source: str | Path | Task, n_texts: int = 100) -> list[str]:
    """The first texts of a file, or of the test split of a task: each prompt with its right answer.

    A generated task's texts need no download; they are plain only as far as the task's sentences are.

    Args:
        source: a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file with a column `text`, or a task that the edit was not
            made for.
        n_texts: how many; all, where there are fewer.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a record is bad.
    """
    if isinstance(source, Task):
        return [example.prompt + example.answer for example in source.test[:n_texts]]
    return [record["text"] for record in read_records(Path(source), {"text": str})[:n_texts]]
