"""Few-shot prompting (Brown et al. 2020, arXiv 2005.14165, section 2): worked examples in front of every prompt, or none.

    example 1's prompt and answer, an empty line, example 2's prompt and answer, an empty line, ..., the prompt

Examples are drawn from the training split by the seed, the same ones for every prompt, so that they are read once. Those whose
prompt another split has too are left out: published splits overlap, and the answer would stand in the prompt.
"""

import random
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.interventions import PromptIntervention
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Fit, made_by, settings_of
from lofit_lens.models import base_of
from lofit_lens.tasks.base import Example, Task


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FewShot:
    """Worked examples in front of every prompt.

    Args:
        n_examples: how many; 0 is zero-shot.
        separator: between them.
    """

    n_examples: Annotated[int, Field(ge=0, strict=True)] = 5
    separator: str = "\n\n"

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[PromptIntervention]:
        """Draw the examples. Nothing is trained.

        Raises:
            ValueError: the training split has fewer examples that no other split asks.
        """
        pool = _never_asked(task) if self.n_examples else []
        if len(pool) < self.n_examples:
            raise ValueError(
                f"got {len(pool)} training examples of {task.name} that no other split asks, wanted {self.n_examples} or more"
            )
        drawn = random.Random(seed).sample(pool, self.n_examples)
        text = "".join(f"{example.prompt}{example.answer}{self.separator}" for example in drawn)
        return Fit(PromptIntervention(text, made_by(self, task, seed), base_of(model)))

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain JSON values."""
        return settings_of(self)


def _never_asked(task: Task) -> list[Example]:
    asked = {example.prompt for split in ("val", "test") for example in task.splits[split]}
    return [example for example in task.train if example.prompt not in asked]
