"""Edits of a running model. `attached` puts one to work; `load_adapter` reads back whatever a method has made."""

from pathlib import Path

from lofit_lens.adapters import read_adapter
from lofit_lens.interventions import heads, lora, low_rank, prompt, residual
from lofit_lens.interventions.base import Adapter, FwdHook, Intervention, Remade, attached, kind_of, of_model
from lofit_lens.interventions.heads import HeadIntervention, scores_from_norms
from lofit_lens.interventions.lora import LoRAIntervention
from lofit_lens.interventions.low_rank import LowRankIntervention
from lofit_lens.interventions.prompt import PromptIntervention, prompted
from lofit_lens.interventions.residual import ResidualIntervention
from lofit_lens.lens import LensModel

_KINDS = {
    heads.KIND: HeadIntervention,
    residual.KIND: ResidualIntervention,
    low_rank.KIND: LowRankIntervention,
    lora.KIND: LoRAIntervention,
    prompt.KIND: PromptIntervention,
}


def load_adapter(folder: str | Path, model: LensModel | None = None) -> Adapter:
    """Read an adapter folder back, whatever kind of intervention it holds.

    Args:
        folder: what `save` wrote.
        model: the model it is meant for: an adapter of another base model is refused. None skips that check.

    Raises:
        FileNotFoundError: no adapter there.
        ValueError: truncated, foreign, of an unknown schema or kind, or of another base model.
    """
    kind = kind_of(read_adapter(Path(folder))[0])
    if kind not in _KINDS:
        raise ValueError(f"the adapter in {folder} is of kind {kind!r}, this lofit-lens reads {', '.join(_KINDS)}")
    return _KINDS[kind].load(folder, model)


__all__ = [
    "Adapter",
    "FwdHook",
    "HeadIntervention",
    "Intervention",
    "LoRAIntervention",
    "LowRankIntervention",
    "PromptIntervention",
    "Remade",
    "ResidualIntervention",
    "attached",
    "load_adapter",
    "of_model",
    "prompted",
    "scores_from_norms",
]
