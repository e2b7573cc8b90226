"""What an edit of a running model is, the one way to attach it, and how those that a method has made are kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lofit_lens import adapters
from lofit_lens.layout import positions_mattering
from lofit_lens.lens import LensModel
from lofit_lens.models import base_of, check_model, fingerprint

FwdHook = tuple[str, Callable[..., Tensor]]


@runtime_checkable
class Intervention(Protocol):
    """Anything that edits a running model and leaves it as it was."""

    @property
    def position_free(self) -> bool:
        """Whether it treats all positions alike.

        If so, what prompts share is read ahead of the rest, and several sequences share a row; if not, every prompt is read
        by itself, once for all its answers, and hooks ask `layout.layout_of` which position is which.
        """
        ...

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit is at work inside; most return `model.hooks(fwd_hooks=...)`.

        Raises:
            ValueError: it does not fit the model; before anything is attached.
        """
        ...


@runtime_checkable
class Adapter(Intervention, Protocol):
    """An intervention that a method made, that knows its origin, and that can be kept in a folder."""

    @property
    def n_parameters(self) -> int:
        """How many numbers the edit is made of (the paper's Table 3)."""
        ...

    @property
    def made_by(self) -> Mapping[str, Any]: ...

    @property
    def base_model(self) -> Mapping[str, Any] | None: ...

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path: ...


@contextmanager
def attached(model: LensModel, intervention: Intervention | None) -> Iterator[LensModel]:
    """Run the model inside this block with the edit at work; afterwards it is the base model again, bit for bit.

    Args:
        model: a TransformerBridge or HookedTransformer; its own methods (`generate`, `run_with_cache`) see the edit too.
        intervention: None attaches nothing.

    Raises:
        ValueError: the edit does not fit the model.
    """
    with ExitStack() as stack:
        if intervention is not None:
            if not intervention.position_free:
                stack.enter_context(positions_mattering())
            stack.enter_context(intervention.attach(model))
        yield model


def of_model(model: LensModel) -> dict[str, Any]:
    """What head scores say of their model: `HeadScores(values, ..., **of_model(model))`."""
    return {"base_model": base_of(model), "n_key_value_heads": check_model(model).n_key_value_heads}


@dataclass(frozen=True)
class Remade:
    """An edit that is made anew, from tensors that are being learned, each time it is attached: so gradients reach them."""

    make: Callable[[], Intervention]
    position_free: bool

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit as it is now is at work inside."""
        return self.make().attach(model)


def save_adapter(
    adapter: Adapter,
    kind: str,
    described: Mapping[str, Any],
    vectors: Mapping[str, Tensor],
    folder: str | Path,
    model: LensModel | None,
    *,
    overwrite: bool,
) -> Path:
    """Write an adapter folder; see `adapters`.

    Args:
        adapter: whose origin is noted.
        kind: what `interventions.load_adapter` goes by.
        described: what else is needed to make it again, as plain JSON values.
        vectors: its tensors.
        folder: where to.
        model: the model that it is for; not needed where a method or `load` has noted it (`base_model`).
        overwrite: replace the folder if it exists.

    Raises:
        ValueError: nobody has said which model it is for.
        FileExistsError: the folder exists, and `overwrite` is not set.
        OSError: it cannot be written; nothing is left half-written.
    """
    base_model = adapter.base_model if model is None else base_of(model)
    if base_model is None:
        raise ValueError("this intervention does not know its base model; pass it: save(folder, model)")
    config = {
        "kind": kind,
        "base_model": dict(base_model),
        "numerics": "raw weights",
        **described,
        "made_by": dict(adapter.made_by),
    }
    return adapters.write_adapter(Path(folder), config, vectors, overwrite=overwrite)


def read_checked_adapter(folder: str | Path, kind: str, model: LensModel | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the vectors of an adapter folder, which is of that kind and for that model.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: truncated, foreign, of an unknown schema, of another kind, or of another base model.
    """
    config, vectors = adapters.read_adapter(Path(folder))
    if kind_of(config) != kind:
        raise ValueError(
            f"the adapter in {folder} is of kind {kind_of(config)!r}, wanted {kind!r}; lofit_lens.load_adapter reads every kind"
        )
    try:
        name, wanted = config["base_model"]["name"], config["base_model"]["fingerprint"]
    except (KeyError, TypeError) as error:
        raise malformed(folder, error) from error
    if model is not None and fingerprint(model) != wanted:
        raise ValueError(
            f"the adapter in {folder} was made for {name!r} (fingerprint {wanted}), this model is "
            f"{getattr(model.cfg, 'model_name', 'unknown')!r} ({fingerprint(model)}); load that model, or pass "
            "model=None to read the vectors without the check"
        )
    return config, vectors


def checked_layers(model: LensModel, layers: Sequence[int], d_model: int) -> None:
    """Refuse layers, or a width of the residual stream, that the model does not have; and no layers at all.

    Raises:
        ValueError: says which.
    """
    info = check_model(model)
    unknown = [layer for layer in layers if not 0 <= layer < info.n_layers]
    if unknown or not layers or len(set(layers)) != len(layers):
        raise ValueError(f"got layers {list(layers)}; wanted at least one of 0 to {info.n_layers - 1}, and none twice")
    if d_model != info.d_model:
        raise ValueError(f"the vectors have d_model = {d_model}, the model {info.d_model}; fit them on this model")


def kind_of(config: Mapping[str, Any]) -> str:
    """The first release kept head interventions only, and did not say so."""
    return config.get("kind", "heads")


def malformed(folder: str | Path, error: Exception) -> ValueError:
    """The error for a configuration whose values are not what `save` writes."""
    return ValueError(
        f"{Path(folder) / adapters.CONFIG_FILE} has values of another form ({error!r}); wanted what `save` writes"
    )
