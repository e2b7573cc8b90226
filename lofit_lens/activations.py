"""What heads put out at the end of a text, collected once and used by every probe and direction.

ITI (Li et al. 2023, section 3.1) reads `z` at the last token of `prompt + answer`. Texts are packed, so that a question is run
once under all its answers (see `packing`); nothing is unembedded, and the last block's MLP does not run. With a folder the
result stays on disk: the same texts and model are read back from there, and memory holds what is looked at. The same model is
one with the same configuration, and the same weights to the last bit; all of them are read to tell, which takes a second for a
gigabyte or two.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, by_length, encode, padded
from lofit_lens.files import new_file
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.packing import packs
from lofit_lens.prefixes import can_pack, unread_prefix
from lofit_lens.progress import progress


@torch.no_grad()
def last_token_z(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    folder: str | Path | None = None,
    names: Sequence[str] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "layer text head d_head"]:
    """`hook_z` of every head at the last token of each `prompt + answer`, of the model as it is, in float32 on the CPU.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        prompts: one or more.
        answers: as many, joined to their prompts as they stand.
        folder: keep the result there, and take it from there if it is; the tensor is then mapped into memory, not read.
        names: what an error calls each pair; without them, they are numbered.
        token_budget: padded tokens that go through the model at once.

    Returns:
        Layers without attention are NaN.

    Raises:
        ValueError: the model or a pair cannot be used, there are none, or a folder is given and the model has hooks or LoRA
            layers; before anything is run.
    """
    info = check_model(model)
    texts = _tokenised(model, prompts, answers, names)
    shape = (info.n_layers, len(texts), info.n_heads, info.d_head)

    def fill(z: Float[Tensor, "layer text head d_head"]) -> None:
        hooks = [lens.z_hook(layer) for layer in info.attention_layers]

        def put(place: int, indices: list[int], values: Tensor) -> None:
            z[info.attention_layers[place], indices] = values.float().cpu()

        _at_last_tokens(model, texts, hooks, token_budget, put)

    if folder is None:
        z = torch.full(shape, torch.nan)
        fill(z)
        return z
    _refuse_edited(model)
    path = Path(folder) / f"z-{_key(model, texts)}.float32"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            fill(_mapped(scratch, shape, shared=True).fill_(torch.nan))
    return _mapped(path, shape, shared=False)


@torch.no_grad()
def last_token_residual(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "layer text d_model"]:
    """The residual stream behind some blocks, at the last token of each `prompt + answer`, in float32 on the CPU.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        prompts: one or more.
        answers: as many, joined to their prompts as they stand.
        layers: the blocks, in the order of the result.
        names: what an error calls each pair; without them, they are numbered.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: the model or a pair cannot be used, or there are none; before anything is run.
    """
    info = check_model(model)
    texts = _tokenised(model, prompts, answers, names)
    h = torch.empty(len(layers), len(texts), info.d_model)
    hooks = [lens.resid_post_hook(model, layer) for layer in layers]

    def put(place: int, indices: list[int], values: Tensor) -> None:
        h[place, indices] = values.float().cpu()

    _at_last_tokens(model, texts, hooks, token_budget, put)
    return h


def _mapped(path: Path, shape: tuple[int, ...], *, shared: bool) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=shared, size=size, dtype=torch.float32).reshape(shape)


def _refuse_edited(model: LensModel) -> None:
    """Refuse a model that is not what its configuration and weights say."""
    found = "hooks, such as an edit's" if lens.is_hooked(model) else None
    # What its factors are multiplied by is no weight.
    if any(type(module).__module__.startswith("peft.") for module in lens.modules(model)):
        found = "LoRA layers"
    if found:
        raise ValueError(
            f"the model has {found}, and no file's name can tell what they do to activations; collect without folder=..., or "
            "take them off"
        )


def _key(model: LensModel, texts: list[tuple[int, ...]]) -> str:
    # Values that JSON does not know, such as a dtype, are left out: what they print may differ from run to run.
    digest = hashlib.sha256(json.dumps([texts, lens.configuration(model)], default=lambda _: None).encode())
    for weight in lens.weights(model):
        digest.update(f"{weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _tokenised(
    model: LensModel, prompts: Sequence[str], answers: Sequence[str], names: Sequence[str] | None
) -> list[tuple[int, ...]]:
    texts = [sequence.prompt + sequence.answer for sequence in encode(model, prompts, answers, eos=False, names=names)]
    if not texts:
        raise ValueError("got no prompts and no answers; wanted at least one of each")
    return texts


def _at_last_tokens(
    model: LensModel,
    texts: Sequence[tuple[int, ...]],
    hooks: Sequence[str],
    token_budget: int,
    put: Callable[[int, list[int], Tensor], None],
) -> None:
    """Run all texts; `put` gets a place in `hooks`, indices of texts, and the values there at their last tokens.

    It gets them as soon as the layer has run, so that no more than one layer's are held here.
    """
    # Nothing is read ahead of the texts: a KV cache of what they share would grow with all that is read behind it.
    root = unread_prefix(model, [()])
    with progress(None, "activations", total=len(texts)) as bar:
        if can_pack(model, root, texts):
            for pack in packs(model, texts, token_budget=token_budget, n_before=0):
                ends = list(pack.indices), list(pack.rows), [path[-1] for path in pack.paths]
                with _watched(model, hooks, *ends, put):
                    lens.plain_forward(model, pack.tokens, pack.mask, pack.positions)
                bar.update(len(pack.indices))
            return
        for group in by_length(map(len, texts), token_budget):
            tokens, mask = padded(model, [texts[i] for i in group], side="right")
            with _watched(model, hooks, group, list(range(len(group))), [len(texts[i]) - 1 for i in group], put):
                lens.plain_forward(model, tokens, mask)
            bar.update(len(group))


@contextmanager
def _watched(
    model: LensModel,
    hooks: Sequence[str],
    indices: list[int],
    rows: list[int],
    columns: list[int],
    put: Callable[[int, list[int], Tensor], None],
) -> Iterator[None]:
    """Inside, `put` gets what hook points see at these rows and columns of a pass, which belong to the texts `indices`."""

    def keep(place: int) -> Callable[..., None]:
        return lambda value, hook: put(place, indices, value[rows, columns])

    # Nobody reads what comes behind the last heads: it runs at one position, which is the fewest that every family takes.
    first = torch.zeros(1, dtype=torch.long)
    skip_the_rest = lens.answer_only_hooks(model, first, first, trim_last_mlp=check_model(model).can_trim_last_mlp)
    watch = [(name, keep(place)) for place, name in enumerate(hooks)]
    with model.hooks(fwd_hooks=watch), model.hooks(fwd_hooks=skip_the_rest):
        yield
