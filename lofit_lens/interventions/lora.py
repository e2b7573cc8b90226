"""LoRA: low-rank changes of W_Q and W_V, put to work by the `peft` library.

    W  <-  W + (alpha / rank) * B A            A [rank, d_in], B [d_out, rank]            (Hu et al. 2021, arXiv 2106.09685)

`peft` builds the layers and does the arithmetic; here they stand in for the model's own while the edit is attached, and the
model's come back after it, the very same objects. It needs the extra `lofit-lens[lora]`.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lofit_lens import lens
from lofit_lens.interventions.base import malformed, read_checked_adapter, save_adapter
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model

KIND = "lora"


@dataclass(frozen=True, eq=False)
class LoRAIntervention:
    """Low-rank changes of the query and value maps.

    Args:
        rank: of each change.
        alpha: `alpha / rank` is what `B A` is multiplied by.
        factors: `{layer}.{q or v}.{A or B}` -> that matrix.
        made_by: how it came about, kept in the adapter's files.
        base_model: the model that it was made for, as `models.base_of` describes it.
    """

    rank: int
    alpha: float
    factors: Mapping[str, Tensor]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    base_model: Mapping[str, Any] | None = None

    @property
    def position_free(self) -> bool:
        return True

    @property
    def n_parameters(self) -> int:
        """How many numbers the edit is made of."""
        return sum(factor.numel() for factor in self.factors.values())

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """The edit is at work inside.

        Raises:
            ImportError: the extra is not installed.
            ValueError: as `LoRALayers`, or factors of other shapes than the model's.
        """
        with torch.random.fork_rng(devices=[]):  # peft draws a start for them, on the CPU
            layers = LoRALayers(model, self.rank, self.alpha)
        wanted = {name: tuple(parameter.shape) for name, parameter in layers.factors.items()}
        got = {name: tuple(factor.shape) for name, factor in self.factors.items()}
        if got != wanted:
            differing = sorted(name for name in {*got, *wanted} if got.get(name) != wanted.get(name))
            raise ValueError(f"the factors {differing[:4]} do not fit this model; fit the adapter on this model")
        with torch.no_grad():
            for name, parameter in layers.factors.items():
                parameter.copy_(self.factors[name])
        return layers.attach(model)

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter folder; as `HeadIntervention.save`."""
        described = {"edit": f"W_Q and W_V, rank {self.rank}", "rank": self.rank, "alpha": self.alpha}
        return save_adapter(self, KIND, described, self.factors, folder, model, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "LoRAIntervention":
        """Read an adapter folder back; as `HeadIntervention.load`."""
        config, factors = read_checked_adapter(folder, KIND, model)
        try:
            rank, alpha = int(config["rank"]), float(config["alpha"])
        except (KeyError, TypeError, ValueError) as error:
            raise malformed(folder, error) from error
        return cls(rank, alpha, factors, made_by=config["made_by"], base_model=config["base_model"])


class LoRALayers:
    """`peft`'s layers around a model's own W_Q and W_V, without effect until they are learned; without dropout at first.

    Their factors are float32, whatever the model is, and so is their arithmetic.

    Args:
        model: a TransformerBridge; it stays as it is until they are attached.
        rank: of each change.
        alpha: `alpha / rank` is what `B A` is multiplied by.
        dropout: of the inputs of A, once it is switched on.

    Raises:
        ImportError: the extra is not installed.
        ValueError: no TransformerBridge, or W_Q and W_V are not linear layers of their own.
    """

    position_free = True

    def __init__(self, model: LensModel, rank: int, alpha: float, dropout: float = 0.0) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError(f"{error}; LoRA comes with an extra: pip install 'lofit-lens[lora]'") from error
        self._places = _places(model)
        own = {name: linear for name, (_, linear) in self._places.items()}
        # peft switches gradients of what it wraps off, and these are the user's.
        wanted_gradient = [weight.requires_grad for linear in own.values() for weight in linear.parameters()]
        self._layers = nn.ModuleDict(own)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(own))  # pyright: ignore[reportArgumentType]
        inject_adapter_in_model(config, self._layers)
        weights = [weight for linear in own.values() for weight in linear.parameters()]
        for weight, wanted in zip(weights, wanted_gradient, strict=True):
            weight.requires_grad_(wanted)
        for factor in self.factors.values():
            factor.data = factor.data.float()
        self.dropout(on=False)

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """The matrices, named as in `LoRAIntervention.factors`."""
        return {
            f"{name.replace('_', '.')}.{factor}": getattr(layer, f"lora_{factor}")["default"].weight
            for name, layer in self._layers.items()
            for factor in ("A", "B")
        }

    def dropout(self, *, on: bool) -> None:
        """Switch dropout on or off; the mode of the model's own layers, which these hold, is the user's."""
        for layer in self._layers.values():
            layer.lora_dropout.train(on)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    @contextmanager
    def attach(self, model: LensModel) -> Iterator[None]:
        """Inside, they stand in for the model's own layers, which come back after it."""
        try:
            for name, (component, _) in self._places.items():
                component._modules["_original_component"] = self._layers[name]
            yield
        finally:
            for component, linear in self._places.values():
                component._modules["_original_component"] = linear


def _places(model: LensModel) -> dict[str, tuple[nn.Module, nn.Linear]]:
    """Where W_Q and W_V are, by `{layer}_{q or v}`: the component of the Bridge, and the linear layer that it wraps."""
    if not lens.is_bridge(model):
        raise ValueError("LoRA changes layers of the Hugging Face model inside a TransformerBridge; this model has none")
    places = {}
    for layer in check_model(model).attention_layers:
        for part in ("q", "v"):
            component = getattr(model.blocks[layer].attn, part)
            linear = component._modules["_original_component"]
            if not isinstance(linear, nn.Linear):
                kind = f"{type(linear).__module__}.{type(linear).__name__}"
                raise ValueError(
                    f"W_{part.upper()} of layer {layer} is a {kind}; wanted a torch.nn.Linear, and no other LoRA at work"
                )
            places[f"{layer}_{part}"] = (component, linear)
    return places
