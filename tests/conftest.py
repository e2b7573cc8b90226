"""What several tests share: tiny random models made from code alone, and tasks made on the spot."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import jaxtyping
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import lofit_lens
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
