"""What heads put out at a token of a text, collected once and used by every probe and direction.

ITI (Li et al. 2023, section 3.1) reads `z` at the last token of `prompt + answer`, which is what is taken unless another is
asked for. Texts are packed, so that a question is run once under all its answers (see `packing`); a pass ends at the last head
that is looked at, so nothing is unembedded. With a folder the result stays on disk: the same texts and model are read back from
there, and memory holds what is looked at. Which model that is, `models.exact_fingerprint` tells.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, by_length, encode, run_right_padded
from lofit_lens.checkpoints import short_sha256
from lofit_lens.files import allocate, new_file
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model, exact_fingerprint
from lofit_lens.packing import packs
from lofit_lens.prefixes import can_pack, unread_prefix
from lofit_lens.progress import progress


def collect_z(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] = -1,
    folder: str | Path | None = None,
    names: Sequence[str] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "layer text head d_head"]:
    """`hook_z` of every head at one token of each `prompt + answer`, of the model as it is, in float32 on the CPU.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights; an edit that is attached is at work.
        prompts: one or more.
        answers: as many, joined to their prompts as they stand.
        layers: the blocks, in the order of the result; None is all of them. Nothing behind the last of them is run.
        positions: which token of `prompt + answer` is looked at, negative from the end; one for all, or one for each.
        folder: keep the result there, and take it from there if it is; the tensor is then mapped into memory, not read.
        names: what an error calls each pair; without them, they are numbered.
        token_budget: padded tokens that go through the model at once.

    Returns:
        Layers without attention are NaN.

    Raises:
        ValueError: the model, a pair, a layer or a position cannot be used, there are no texts, or a folder is given and the
            model has hooks or LoRA layers; before anything is run.
    """
    info = check_model(model)
    layers = _checked_layers(layers, info.n_layers)
    hooks = {row: lens.z_hook(layer) for row, layer in enumerate(layers) if layer in info.attention_layers}
    texts = _located(model, prompts, answers, positions, names)
    return _collected(model, texts, hooks, (len(layers), len(texts), info.n_heads, info.d_head), folder, token_budget)


def collect_residual(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: int | Sequence[int] = -1,
    folder: str | Path | None = None,
    names: Sequence[str] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "layer text d_model"]:
    """The residual stream behind some blocks, at one token of each `prompt + answer`; all else is as in `collect_z`.

    Raises:
        ValueError: as `collect_z`.
    """
    info = check_model(model)
    layers = _checked_layers(layers, info.n_layers)
    hooks = {row: lens.resid_post_hook(model, layer) for row, layer in enumerate(layers)}
    texts = _located(model, prompts, answers, positions, names)
    return _collected(model, texts, hooks, (len(layers), len(texts), info.d_model), folder, token_budget)


def collect_norm_scales(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    norms: Sequence[str],
    *,
    positions: int | Sequence[int] = -1,
    names: Sequence[str] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "norm text"]:
    """What each of some norms (`ln_final`, `blocks.3.ln1_post`) divides by, at one token of each `prompt + answer`.

    All else is as in `collect_z`, without a folder.

    Raises:
        ValueError: as `collect_z`.
    """
    check_model(model)
    texts = _located(model, prompts, answers, positions, names)
    hooks = {row: lens.norm_scale_hook(norm) for row, norm in enumerate(norms)}
    return _collected(model, texts, hooks, (len(norms), len(texts), 1), None, token_budget).squeeze(-1)


class _Text(NamedTuple):
    """The tokens of a text, the place of the one that is looked at, and how many belong to the prompt."""

    tokens: tuple[int, ...]
    place: int
    n_prompt: int


def _checked_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    wanted = tuple(range(n_layers)) if layers is None else tuple(layers)
    if not wanted or not all(0 <= layer < n_layers for layer in wanted):
        raise ValueError(f"got the layers {wanted}, wanted one or more of 0 to {n_layers - 1}")
    return wanted


def _located(
    model: LensModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    positions: int | Sequence[int],
    names: Sequence[str] | None,
) -> list[_Text]:
    sequences = encode(model, prompts, answers, eos=False, names=names)
    if not sequences:
        raise ValueError("got no prompts and no answers; wanted at least one of each")
    positions = [positions] * len(sequences) if isinstance(positions, int) else positions
    if len(positions) != len(sequences):
        raise ValueError(f"got {len(positions)} positions for {len(sequences)} texts; wanted one for all, or one for each")
    for i, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        if not -len(sequence) <= position < len(sequence):
            name = f"text {i}" if names is None else names[i]
            raise ValueError(f"{name} has {len(sequence)} tokens, so none at position {position}")
    return [
        _Text(sequence.prompt + sequence.answer, position % len(sequence), len(sequence.prompt))
        for sequence, position in zip(sequences, positions, strict=True)
    ]


@torch.no_grad()
def _collected(
    model: LensModel,
    texts: Sequence[_Text],
    hooks: Mapping[int, str],
    shape: tuple[int, ...],
    folder: str | Path | None,
    token_budget: int,
) -> Tensor:
    """What the hook points see, each in its row of the first dimension; rows without one are NaN."""

    def fill(found: Tensor) -> None:
        found.fill_(torch.nan)
        if hooks:
            _run(model, texts, hooks, found, token_budget)

    if folder is None:
        in_memory = torch.empty(shape)
        fill(in_memory)
        return in_memory
    _refuse_edited(model)
    path = Path(folder) / f"{_key(model, texts, hooks, shape)}.float32"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            allocate(scratch, torch.Size(shape).numel() * torch.float32.itemsize)
            fill(_mapped(scratch, shape, shared=True))
    return _mapped(path, shape, shared=False)


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


def _key(model: LensModel, texts: Sequence[_Text], hooks: Mapping[int, str], shape: tuple[int, ...]) -> str:
    # Of a bare model: where a prompt ends changes nothing.
    looked_at = [(text.tokens, text.place) for text in texts]
    return short_sha256([exact_fingerprint(model), looked_at, hooks, shape])


def _run(model: LensModel, texts: Sequence[_Text], hooks: Mapping[int, str], found: Tensor, token_budget: int) -> None:
    """Run all texts, and put what each hook point sees into its row as soon as it does: no more than one is held here."""
    tokens_of = [text.tokens for text in texts]
    # Nothing is read ahead of the texts: a KV cache of what they share would grow with all that is read behind it.
    root = unread_prefix(model, [()])
    with progress(None, "activations", total=len(texts)) as bar:
        if can_pack(model, root, tokens_of):
            for pack in packs(model, tokens_of, token_budget=token_budget, n_before=0):
                columns = [path[texts[i].place] for i, path in zip(pack.indices, pack.paths, strict=True)]
                with _watched(model, hooks, found, list(pack.indices), list(pack.rows), columns):
                    lens.plain_forward(model, pack.tokens, pack.mask, pack.positions)
                bar.update(len(pack.indices))
            return
        for group in by_length(map(len, tokens_of), token_budget):
            with _watched(model, hooks, found, group, list(range(len(group))), [texts[i].place for i in group]):
                run_right_padded(model, [tokens_of[i] for i in group], [texts[i].n_prompt for i in group])
            bar.update(len(group))


def _watched(
    model: LensModel, hooks: Mapping[int, str], found: Tensor, indices: list[int], rows: list[int], columns: list[int]
) -> AbstractContextManager[None]:
    """Inside, a pass ends at the last hook point; what each saw at these rows and columns belongs to the texts `indices`."""
    waiting = set(hooks)

    def keep(row: int) -> Callable[..., None]:
        def hook(value: Tensor, hook: object) -> None:
            found[row, indices] = value[rows, columns].float().cpu()
            waiting.discard(row)
            if not waiting:
                raise lens.AllSeenError

        return hook

    return lens.ending_early(model, [(name, keep(row)) for row, name in hooks.items()])
