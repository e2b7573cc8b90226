"""What several tests share: tiny random models made from code alone, and tasks made on the spot."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import jaxtyping
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import lofit_lens
from lofit_lens import analysis
from lofit_lens.analysis.reading import ReadToken
from lofit_lens.heads import Head, HeadScores
from lofit_lens.methods import Fit
from lofit_lens.outcomes import Evaluation
from lofit_lens.probes import LabelledAnswers
from lofit_lens.runs import Run, write_run
from lofit_lens.tasks.base import Example, Split, Task
from lofit_lens.tiny import tiny_pair


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_tiny_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Products of tiny matrices gain nothing from threads; on shared cores they spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.path.parent.name == "unit" else threads)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of these tests, which would be faster than the package's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def unavailable() -> Callable[[str], NoReturn]:
    """`unavailable(reason)` skips a test; where CI is set, which has to run it, it fails."""

    def stop(reason: str) -> NoReturn:
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI does without no test")
        pytest.skip(reason)

    return stop


@pytest.fixture(scope="session")
def chromium(unavailable: Callable[[str], NoReturn]) -> str:
    """The browser that draws images and opens reports."""
    return shutil.which("chromium") or shutil.which("google-chrome") or unavailable("no Chrome or Chromium here")


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published data files, which are not shipped."""
    folder = Path(os.environ.get("LOFIT_LENS_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
    if not (folder / "clutrr" / "train.json").is_file():
        pytest.skip(f"the published data files are not in {folder}; set LOFIT_LENS_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def gpt2() -> TransformerBridge:
    """Learned positions, biases everywhere, heads that add up to the width."""
    return lofit_lens.tiny_model("gpt2")


@pytest.fixture(scope="session")
def llama() -> TransformerBridge:
    """Rotary positions, no biases, 2 key-value heads for 4 query heads, `n_heads * d_head != d_model`."""
    return lofit_lens.tiny_model("llama")


@pytest.fixture(scope="session")
def gemma3() -> TransformerBridge:
    """Sliding-window layers, norms behind each sublayer, `n_heads * d_head != d_model`."""
    return lofit_lens.tiny_model("gemma3")


@pytest.fixture(scope="session", params=["gpt2", "llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> TransformerBridge:
    """Each of the three in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def speaker() -> TransformerBridge:
    """A llama whose greedy answers are printable text and often end: other tokens are unlikely, `<eos>` is likelier."""
    hf_model, tokenizer = tiny_pair("llama")
    printable = tokenizer("".join(map(chr, range(ord("!"), ord("~") + 1))), add_special_tokens=False)["input_ids"]
    head = hf_model.get_output_embeddings().weight
    with torch.no_grad():
        kept = torch.zeros_like(head)
        kept[printable] = head[printable]
        kept[tokenizer.eos_token_id] = 1.5 * head[tokenizer.eos_token_id]
        head.copy_(kept)
    return TransformerBridge.boot_transformers("tiny-speaker", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


class ToyTask(Task):
    """Whatever examples, loss and metric a test needs."""

    name = "toy"

    def __init__(self, splits: Mapping[Split, Iterable[Example]], stop: tuple[str, ...] = ("\n",), **settings: object) -> None:
        self._splits = splits
        self._stop = stop
        vars(self).update({"loss": "cross_entropy", "metric": "exact_match", **settings})

    @property
    def stop(self) -> tuple[str, ...]:
        return self._stop

    def build(self, split: Split) -> Iterable[Example]:
        return self._splits.get(split, ())

    @property
    def chance(self) -> float:
        return 0.0


@pytest.fixture(scope="session")
def toy_task() -> Callable[..., Task]:
    """`toy_task({"train": examples}, loss="dpo")`: a task of these examples; splits that are not given are empty."""
    return ToyTask


@pytest.fixture
def passes(llama: TransformerBridge, speaker: TransformerBridge) -> Iterator[list[int]]:
    """An entry for every forward pass of these two models that runs meanwhile."""
    counted: list[int] = []
    with ExitStack() as stack:
        for watched in (llama, speaker):
            lofit_lens.check_model(watched)
            stack.enter_context(watched.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: counted.append(1))]))
        yield counted


def _store_run(folder: Path, number: int, text: str) -> None:
    """A run as `RunStore` keeps it, of a model with 12 layers of 8 heads; every text in it has `text`."""
    generator = torch.Generator().manual_seed(number)
    scores = HeadScores(torch.rand(12, 8, generator=generator), f"norm {text}", {"method": text, "task": text})
    heads = scores.top(9)
    task, seed = f"task {number % 4}{text}", number // 4
    made_by = {"method": f"LoFiT{text}", "task": task, "seed": seed, "settings": {"k": 9, "heads": None, "note": text}}
    base = {"name": f"tiny{text}", "fingerprint": f"f{text}", "n_layers": 12, "n_heads": 8, "d_head": 4}
    edit = lofit_lens.HeadIntervention(heads, offset=torch.ones(9, 4) * number, made_by=made_by, base_model=base)
    right = tuple(float(i < number + 2) for i in range(40))
    evaluation = Evaluation(task, "test", "exact_match", {"exact_match": right}, (text,) * 40, 0, {"note": text})
    settings = {"model": f"f{text}", "task": {"name": task}, "method": {"k": 9}, "seed": seed}
    labels = {"model": f"tiny{text}", "task": task, "method": f"lofit{text}", "k": 9, "seed": seed}
    folder.mkdir(parents=True)
    write_run(folder, Run(settings, Fit(edit, scores, {"offset": (1.0,)}), evaluation, labels))


def _results_saying(text: str) -> dict[str, object]:
    """Results of those kinds that have texts from data, all of which have `text`."""
    task, heads = f"task{text}", (Head(0, 1), Head(2, 0))
    judged = Evaluation(task, "test", "exact_match", {"exact_match": (1.0, 0.0)}, (text, text), 0, {"note": text})
    runs = {f"{name}{text}": [HeadScores(torch.rand(3, 4))] for name in "ab"}
    half = ((0.5, 0.5), task)
    labelled = LabelledAnswers((text, text), (text, text), (True, False), (0, 0), (text, text))
    return {
        "evaluation": judged,
        "transfer": analysis.TransferTable({(text, task): judged}, (text,), (task,)),
        "sweep": analysis.Sweep(text, {0.1: (judged,), 1.0: (judged,)}),
        "mixture": analysis.Mixture((half[0],), (task,), {half: judged}),
        "head_transfer": analysis.head_transfer({(task, task): {0: judged}, (text, task): {0: judged}}, (task, text), (task,)),
        "overlap": analysis.head_overlap(runs, 2, n_draws=20),
        "geometry": analysis.OffsetGeometry(
            heads, (text,), torch.full((3, 2, 1), 0.25), 64, torch.ones(2), torch.ones(2), torch.ones(2)
        ),
        "plane": analysis.OffsetPlane(heads[0], "probe", 15.0, labelled, torch.rand(2, 2), torch.rand(2), torch.rand(2), 0.5),
        "reading": analysis.OffsetReading((ReadToken(heads[0], "with norm", "top", 1, text, 3.5, 0.25),)),
        "tokens": analysis.TokenEffects(("a", text), torch.tensor([-1.0]), torch.tensor([-0.1]), torch.tensor([0.2])),
        "attention": analysis.AttentionPatterns(("a", text), heads, torch.ones(2, 2, 2) / 2, torch.ones(2, 2, 2) / 2),
    }


@pytest.fixture(scope="session")
def write_study() -> Callable[..., Path]:
    """`write_study(folder, n_runs=3, text="")`: runs in `folder / "runs"`, results of several kinds in `folder / "results"`."""

    def write(folder: Path, *, n_runs: int = 3, text: str = "") -> Path:
        for number in range(n_runs):
            _store_run(folder / "runs" / f"{number:016x}", number, text)
        for name, result in _results_saying(text).items():
            lofit_lens.save_result(result, folder / "results" / f"{name}.json")
        return folder

    return write
