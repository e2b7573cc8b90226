"""Where each published data file lives, its checksum and its licence; and the one place that downloads them.

Nothing is downloaded unless `download` is called: by `lofit-lens download TASK`, or by `open_web_text`, which side effects are
measured on when no text is given. A file goes to the user's cache, once; a published task then finds it there. Every address
names a commit, so it stands for one content, and a file with another SHA-256 than the one below is refused. Where the table has
none (parquet files of the hub that were out of reach when it was written), the file must have the checksum that the hub states
for it at that commit: a SHA-256, or git's SHA-1 of the blob. What was fetched, from which revision and with what checksum, is
noted beside the file, and a file that has changed since is refused too.
"""

import ast
import hashlib
import json
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import get_hf_file_metadata
from huggingface_hub.errors import HfHubHTTPError

from lofit_lens.files import cache_dir, new_file, sha256_of, write_json_atomically

logger = logging.getLogger(__name__)

_LOFIT = "https://raw.githubusercontent.com/fc2869/lo-fit/ec2c0f4a20d1173be491643a05c56c149a6aeaac/dataset"
_HUB = "https://huggingface.co/datasets"
_ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"
#: This and the commits of ITI's and OpenWebText's files are of the hub's own conversion to parquet (refs/convert/parquet).
_SIQA = f"{_HUB}/allenai/social_i_qa/resolve/89b943c9f61c6f3296998bb60773476f791c7128/default"


#: Hex digits of git's name of a content.
_GIT_DIGITS = 40


@dataclass(frozen=True)
class DataFile:
    """One file of a task.

    Args:
        name: its place in a data folder.
        url: where it is published; it names the commit.
        sha256: its checksum; None: the hub states one, or git's.
        licence: as the publisher states it.
        derive: makes the file's text of the published one, where that is code.
    """

    name: str
    url: str
    sha256: str | None
    licence: str
    derive: Callable[[str], str] | None = None


def _truthfulqa(fold: int, split: str, sha256: str) -> DataFile:
    name = f"truthfulqa/fold_{fold}_{split}_seed_42.csv"
    return DataFile(name, f"{_LOFIT}/{name}", sha256, "Apache-2.0")


def _mquake(split: str, sha256: str) -> DataFile:
    return DataFile(f"mquake/{split}.jsonl", f"{_LOFIT}/MQuAKE/{split}.jsonl", sha256, "MIT")


def _clutrr(split: str, sha256: str) -> DataFile:
    return DataFile(f"clutrr/{split}.json", f"{_LOFIT}/clutrr/{split}.json", sha256, "CC BY-NC 4.0 (upstream)")


#: ITI's (MIT licence), in front of TruthfulQA's examples.
_INSTRUCTION = (
    "Interpret each question literally, and as a question about the real world; carefully research each answer, without "
    "falling prey to any common myths; and reply “I have no comment” unless you are completely certain of the answer."
)


def _judging_prompt(presets: str) -> str:
    """The instruction and the six examples, which TruthfulQA publishes as a constant in its `presets.py`."""
    for node in ast.parse(presets).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["QA_PRIMER"]:
            return f"{_INSTRUCTION}\n\n{ast.literal_eval(node.value).strip()}"
    raise ValueError("got a presets.py without QA_PRIMER, wanted TruthfulQA's")


def _hub(name: str, url: str, licence: str, sha256: str | None = None) -> DataFile:
    return DataFile(name, url, sha256, licence)


def _iti(task: str, hub_name: str, revision: str, licence: str) -> DataFile:
    url = f"{_HUB}/OamPatel/{hub_name}/resolve/{revision}/default/validation/0000.parquet"
    return _hub(f"{task}/validation.parquet", url, f"{licence} (upstream)")


#: For each published task, its files.
SOURCES: dict[str, tuple[DataFile, ...]] = {
    "truthfulqa": (
        _truthfulqa(0, "train", "e80aebee6876ceec76ac030bcfd31c070b9c23809077500a3b183640386fb136"),
        _truthfulqa(0, "val", "5563034f53a463202f4c2ac82336a58d81d0ec02460f7d80e8abce6a4972161a"),
        _truthfulqa(0, "test", "4bd4d0db03751e652c6811b053e14c2f4ea43da888571fa0f15df42e7544a67c"),
        _truthfulqa(1, "train", "0342def493a6afdaae11737cd557393c0cde2cc35d26d58e7a2fd4c954997fba"),
        _truthfulqa(1, "val", "375030fc5bfe7315825f0272b95f6d2b0b0f6332f7121ba57537ec5c1fc1969e"),
        _truthfulqa(1, "test", "e9019df6fca8a1e25eed3e2256196d30a2675528e76eae0b812b5092fa114455"),
        DataFile(
            "truthfulqa/mc_prompt.txt",
            "https://raw.githubusercontent.com/sylinrl/TruthfulQA/d71c110897f5d31c5d7f309e7bc316c152f6f031/truthfulqa/presets.py",
            "cdd6849a4516f4cf34477174a43c946515eaaef8ecf2172695e18c7c4f3815b7",
            "Apache-2.0",
            derive=_judging_prompt,
        ),
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
            f"{_HUB}/allenai/ai2_arc/resolve/{_ARC_REVISION}/ARC-Challenge/{split}-00000-of-00001.parquet",
            "CC BY-SA 4.0",
            sha256,
        )
        for split, sha256 in {
            "train": "e488c1587ffdcfc8443f916c53488a95cd471c5790e0746c6bfe4cecf20962cb",
            "validation": "395a5c88d1580d69855fbaee9450270578df1ad5af6259771cd0a42c20e99f05",
            "test": "62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9",
        }.items()
    ),
    "boolq": tuple(
        _hub(
            f"boolq/{split}.parquet",
            f"{_HUB}/google/boolq/resolve/35b264d03638db9f4ce671b711558bf7ff0f80d5/data/{split}-00000-of-00001.parquet",
            "CC BY-SA 3.0",
        )
        for split in ("train", "validation")
    ),
    "svamp": (
        DataFile(
            "svamp/SVAMP.json",
            "https://raw.githubusercontent.com/arkilpatel/SVAMP/78e727689e1c1bebfc4be39c446898e8e10b0518/SVAMP.json",
            "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
            "MIT",
        ),
    ),
    "trivia_qa": (_iti("trivia_qa", "iti_trivia_qa_val", "d9356957b845dbfe72726b6c1f22425dfb1148dc", "Apache-2.0"),),
    "natural_questions": (
        _iti("natural_questions", "iti_nq_open_val", "d49074f5078ae33986345aa8d935a7e3b744978e", "CC BY-SA 3.0"),
    ),
    "open_web_text": (
        _hub(
            "open_web_text/train.parquet",
            f"{_HUB}/stas/openwebtext-10k/resolve/84d357a666d1051e2e4e30d711d8d51ff491d40c/plain_text/train/0000.parquet",
            "CC0 1.0 (the packaging; the texts are their authors')",
        ),
    ),
}


def downloads_folder() -> Path:
    """Where downloaded data files are kept."""
    return cache_dir() / "data"


def download(task: str) -> Path:
    """Fetch a published task's files into the cache; those that are there already are checked and left alone.

    Args:
        task: a key of `SOURCES`.

    Returns:
        The folder that holds them, which can be passed as `data_dir`.

    Raises:
        ValueError: no such task, a file is not the one that was published, or one has changed since it was fetched.
        ConnectionError: a file could not be fetched.
    """
    if task not in SOURCES:
        raise ValueError(f"there is nothing to download for {task!r}; published tasks are {', '.join(SOURCES)}")
    for file in SOURCES[task]:
        target = downloads_folder() / file.name
        note = target.with_name(f"{target.name}.source.json")
        if target.exists():
            _check(target, json.loads(note.read_text())["sha256"] if note.exists() else file.sha256, "remove it")
            continue
        logger.info("%s (%s) from %s", file.name, file.licence, file.url)
        revision, stated = (None, file.sha256) if file.sha256 else _stated_by_hub(file)
        with new_file(target) as scratch:
            _fetch(file, scratch)
            found = _check(scratch, stated, f"not what {file.url} is known to hold, so not kept")
        write_json_atomically(note, {"url": file.url, "revision": revision, "sha256": found, "licence": file.licence})
    return downloads_folder()


def _check(path: Path, wanted: str | None, way_out: str) -> str:
    """The SHA-256, where `wanted` is that, or git's SHA-1 of the content, or not known."""
    sha256 = sha256_of(path)
    is_git = wanted is not None and len(wanted) == _GIT_DIGITS
    kind, found = ("git blob SHA-1", _git_blob_sha1(path)) if is_git else ("SHA-256", sha256)
    if wanted not in (None, found):
        raise ValueError(f"{path} has {kind} {found}, wanted {wanted}: {way_out}")
    return sha256


def _git_blob_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _stated_by_hub(file: DataFile) -> tuple[str | None, str]:
    """The commit that the address stands for, and the SHA-256 of its content, or git's SHA-1 where the hub keeps it in git."""
    try:
        metadata = get_hf_file_metadata(file.url)
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise _unreachable(file, error) from error
    etag = metadata.etag or ""
    if not re.fullmatch(f"[0-9a-f]{{64}}|[0-9a-f]{{{_GIT_DIGITS}}}", etag):
        raise ValueError(f"{file.url}: got the etag {etag!r}, wanted a checksum to check the file by; so not fetched")
    return metadata.commit_hash, etag


def _fetch(file: DataFile, target: Path) -> None:
    try:
        with urllib.request.urlopen(file.url, timeout=60) as answer, open(target, "wb") as out:
            while piece := answer.read(1 << 20):
                out.write(piece)
    except (urllib.error.URLError, TimeoutError) as error:
        raise _unreachable(file, error) from error
    if file.derive is not None:
        target.write_bytes(file.derive(target.read_text(encoding="utf-8")).encode())


def _unreachable(file: DataFile, error: Exception) -> ConnectionError:
    reason = str(error).splitlines()[0]
    return ConnectionError(
        f"{file.url} could not be fetched ({reason}); try again, or put the file into a data folder as {file.name} "
        "and pass data_dir=..."
    )
