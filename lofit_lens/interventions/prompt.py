"""The edit that is no edit: text in front of every prompt, such as worked examples."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lofit_lens.interventions.base import Intervention, malformed, read_checked_adapter, save_adapter
from lofit_lens.lens import LensModel

KIND = "prompt"


@dataclass(frozen=True)
class PromptIntervention:
    """Text that whatever takes prompts and an intervention puts in front of every prompt. The model itself stays as it is.

    Args:
        text: with whatever stands between it and a prompt.
        made_by: how it came about, kept in the adapter's files.
        base_model: the model that it was made for, as `models.base_of` describes it.
    """

    text: str
    made_by: Mapping[str, Any] = field(default_factory=dict)
    base_model: Mapping[str, Any] | None = None

    @property
    def position_free(self) -> bool:
        return True

    @property
    def n_parameters(self) -> int:
        """Nothing is learned."""
        return 0

    def attach(self, model: LensModel) -> AbstractContextManager[Any]:
        """Nothing happens to the model."""
        return nullcontext()

    def save(self, folder: str | Path, model: LensModel | None = None, *, overwrite: bool = False) -> Path:
        """Write an adapter folder; as `HeadIntervention.save`."""
        described = {"edit": "text in front of every prompt", "text": self.text}
        return save_adapter(self, KIND, described, {}, folder, model, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path, model: LensModel | None = None) -> "PromptIntervention":
        """Read an adapter folder back; as `HeadIntervention.load`."""
        config, _ = read_checked_adapter(folder, KIND, model)
        try:
            return cls(config["text"], made_by=config["made_by"], base_model=config["base_model"])
        except KeyError as error:
            raise malformed(folder, error) from error


def prompted(intervention: Intervention | None, prompts: Sequence[str]) -> list[str]:
    """The prompts as the model gets to see them under that intervention."""
    if isinstance(intervention, PromptIntervention):
        return [intervention.text + prompt for prompt in prompts]
    return list(prompts)
