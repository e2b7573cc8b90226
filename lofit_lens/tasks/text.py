"""Ordinary text, held out from every task: what `side_effects` measures on when it is given none."""

import random
from pathlib import Path

from lofit_lens.tasks.data import data_file, first_of, read_records


def open_web_text(n_texts: int = 100, *, seed: int = 42, data_dir: str | Path | None = None) -> list[str]:
    """Texts drawn from OpenWebText's first 10,000, which ITI and LoFiT take 100 of (`lofit-lens download open_web_text`).

    Args:
        n_texts: how many.
        seed: which.
        data_dir: a folder with `open_web_text/train.parquet` (or `.jsonl`; column `text`); without it, the environment
            variable LOFIT_LENS_DATA names it.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: more texts are wanted than there are, or a record is bad.
    """
    records = read_records(data_file("open_web_text/train.parquet", data_dir), {"text": str})
    random.Random(seed).shuffle(records)
    return [record["text"] for record in first_of(records, n_texts, "texts")]
