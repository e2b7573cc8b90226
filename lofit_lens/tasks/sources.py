"""Where each published data file lives, its checksum and its licence; and the one place that downloads them.

Nothing is downloaded unless `download` is called (`lofit-lens download TASK`). A file goes to the user's cache, once; a
published task then finds it there. A file with another SHA-256 than the one below is refused. The hub's parquet files have none
there, and their addresses name the hub's current revision: they are taken as they come.
"""

import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lofit_lens.files import cache_dir, new_file, sha256_of

logger = logging.getLogger(__name__)

_LOFIT = "https://raw.githubusercontent.com/fc2869/lo-fit/ec2c0f4a20d1173be491643a05c56c149a6aeaac/dataset"
_HUB = "https://huggingface.co/datasets"
#: The hub's own conversion of a data set to plain parquet files.
_CONVERTED = "refs%2Fconvert%2Fparquet"
_SIQA = f"{_HUB}/allenai/social_i_qa/resolve/{_CONVERTED}/default"


@dataclass(frozen=True)
class DataFile:
    """One file of a task.

    Args:
        name: its place in a data folder.
        url: where it is published.
        sha256: its checksum; None where none is published.
        licence: as the publisher states it.
    """

    name: str
    url: str
    sha256: str | None
    licence: str


def _truthfulqa(fold: int, split: str, sha256: str) -> DataFile:
    name = f"truthfulqa/fold_{fold}_{split}_seed_42.csv"
    return DataFile(name, f"{_LOFIT}/{name}", sha256, "Apache-2.0")


def _mquake(split: str, sha256: str) -> DataFile:
    return DataFile(f"mquake/{split}.jsonl", f"{_LOFIT}/MQuAKE/{split}.jsonl", sha256, "MIT")


def _clutrr(split: str, sha256: str) -> DataFile:
    return DataFile(f"clutrr/{split}.json", f"{_LOFIT}/clutrr/{split}.json", sha256, "CC BY-NC 4.0 (upstream)")


def _hub(name: str, url: str, licence: str) -> DataFile:
    return DataFile(name, url, None, licence)


def _iti(task: str, hub_name: str, licence: str) -> DataFile:
    url = f"{_HUB}/OamPatel/{hub_name}/resolve/{_CONVERTED}/default/validation/0000.parquet"
    return _hub(f"{task}/validation.parquet", url, f"{licence} (upstream)")


#: For each published task, its files. `truthfulqa/mc_prompt.txt`, the instruction and six examples that precede every
#: question, is published as code only: put it into the data folder by hand, or give `preset=`.
SOURCES: dict[str, tuple[DataFile, ...]] = {
    "truthfulqa": (
        _truthfulqa(0, "train", "e80aebee6876ceec76ac030bcfd31c070b9c23809077500a3b183640386fb136"),
        _truthfulqa(0, "val", "5563034f53a463202f4c2ac82336a58d81d0ec02460f7d80e8abce6a4972161a"),
        _truthfulqa(0, "test", "4bd4d0db03751e652c6811b053e14c2f4ea43da888571fa0f15df42e7544a67c"),
        _truthfulqa(1, "train", "0342def493a6afdaae11737cd557393c0cde2cc35d26d58e7a2fd4c954997fba"),
        _truthfulqa(1, "val", "375030fc5bfe7315825f0272b95f6d2b0b0f6332f7121ba57537ec5c1fc1969e"),
        _truthfulqa(1, "test", "e9019df6fca8a1e25eed3e2256196d30a2675528e76eae0b812b5092fa114455"),
    ),
    "mquake": (
        _mquake("train", "5db931bd09457245d1a133fe8df86a45985d28767ba6f032d1b7dcc737e22498"),
        _mquake("val", "3cbf9245ba671458d0979c5bba569e838d54fce860e8d0c5af0bc2ce54d41e83"),
        _mquake("test", "3090ef350f4322878968466881de9ec988b5b71daf55d5d9b04fb894a5ebac87"),
    ),
    "clutrr": (
        _clutrr("train", "8640526e573444bdf52bd78eee0bf3a9f2e96bb3bb6d7610021dc05751a5c873"),
        _clutrr("val", "afcae888ed7862081496151a33b9bed157d709b01589c2db566266ecdd906f1e"),
        _clutrr("test", "cf400381f8a12a703265f95df1387c217a71525325f725ff2b8dc08123c30056"),
    ),
    "social_iqa": (
        _hub("social_iqa/train.parquet", f"{_SIQA}/train/0000.parquet", "CC BY 4.0"),
        _hub("social_iqa/validation.parquet", f"{_SIQA}/validation/0000.parquet", "CC BY 4.0"),
    ),
    "arc_challenge": tuple(
        _hub(
            f"arc_challenge/{split}.parquet",
            f"{_HUB}/allenai/ai2_arc/resolve/main/ARC-Challenge/{split}-00000-of-00001.parquet",
            "CC BY-SA 4.0",
        )
        for split in ("train", "validation", "test")
    ),
    "boolq": tuple(
        _hub(
            f"boolq/{split}.parquet",
            f"{_HUB}/google/boolq/resolve/main/data/{split}-00000-of-00001.parquet",
            "CC BY-SA 3.0",
        )
        for split in ("train", "validation")
    ),
    "svamp": (
        DataFile(
            "svamp/SVAMP.json",
            "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json",
            "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
            "MIT",
        ),
    ),
    "trivia_qa": (_iti("trivia_qa", "iti_trivia_qa_val", "Apache-2.0"),),
    "natural_questions": (_iti("natural_questions", "iti_nq_open_val", "CC BY-SA 3.0"),),
    "open_web_text": (
        _hub(
            "open_web_text/train.parquet",
            f"{_HUB}/stas/openwebtext-10k/resolve/{_CONVERTED}/plain_text/train/0000.parquet",
            "CC0 1.0 (the packaging; the texts are their authors')",
        ),
    ),
}


def downloads_folder() -> Path:
    """Where downloaded data files are kept."""
    return cache_dir() / "data"


def download(task: str) -> Path:
    """Fetch a published task's files into the cache; those that are there already are left alone.

    Args:
        task: a key of `SOURCES`.

    Returns:
        The folder that holds them, which can be passed as `data_dir`.

    Raises:
        ValueError: no such task, or a file is not the one that was published.
        ConnectionError: a file could not be fetched.
    """
    if task not in SOURCES:
        raise ValueError(f"there is nothing to download for {task!r}; published tasks are {', '.join(SOURCES)}")
    for file in SOURCES[task]:
        target = downloads_folder() / file.name
        if target.exists():
            continue
        logger.info("%s (%s) from %s", file.name, file.licence, file.url)
        with new_file(target) as scratch:
            _fetch(file, scratch)
            found = sha256_of(scratch)
            if file.sha256 not in (None, found):
                raise ValueError(f"{file.url} has SHA-256 {found}, wanted {file.sha256}: not the published file, so not kept")
    return downloads_folder()


def _fetch(file: DataFile, target: Path) -> None:
    try:
        with urllib.request.urlopen(file.url, timeout=60) as answer, open(target, "wb") as out:
            while piece := answer.read(1 << 20):
                out.write(piece)
    except (urllib.error.URLError, TimeoutError) as error:
        raise ConnectionError(
            f"{file.url} could not be fetched ({error}); try again, or put the file into a data folder as {file.name} "
            "and pass data_dir=..."
        ) from error
