"""What an evaluation found: a metric, its interval, and every example's outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lofit_lens.statistics import mean_interval, success_interval
from lofit_lens.tasks.base import Split

#: Metrics whose scores are successes and failures; a judge may give half points too.
SUCCESS_RATES = ("exact_match", "mc1", "judge")


@dataclass(frozen=True)
class Evaluation:
    """A metric on one split, with every example's outcome, so that methods can be compared pair by pair.

    Args:
        task: the task's name.
        split: which examples.
        metric: the task's own metric.
        scores: for each metric, every example's score, in the split's order: in [0, 1], but for `margin`.
        texts: generated answers (the gold one where teacher forcing decided); empty in multiple choice.
        generated: how many answers had to be generated, at least in part.
        task_settings: which examples these are (`Task.settings`); if pooled, those of each part under "parts".
    """

    task: str
    split: Split
    metric: str
    scores: Mapping[str, tuple[float, ...]]
    texts: tuple[str, ...] = ()
    generated: int = 0
    task_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.scores[self.metric])

    @property
    def value(self) -> float:
        """Mean of the task's metric over examples, in [0, 1]."""
        return self.mean(self.metric)

    def mean(self, metric: str) -> float:
        return sum(self.scores[metric]) / len(self.scores[metric])

    def interval(self, metric: str | None = None) -> tuple[float, float]:
        """95 % interval of the mean: Wilson's for a success rate, else a BCa bootstrap over examples (seeded)."""
        metric = metric or self.metric
        return (success_interval if metric in SUCCESS_RATES else mean_interval)(self.scores[metric])

    def to_frame(self) -> pd.DataFrame:
        """One row per example: its score in each metric, and the answer's text if there is one."""
        columns: dict[str, Sequence[Any]] = dict(self.scores)
        if self.texts:
            columns["text"] = self.texts
        return pd.DataFrame(columns)

    def to_row(self) -> dict[str, Any]:
        """What a table of several says of each: the metric's value in [0, 1], its 95 % interval, and of how many examples."""
        low, high = self.interval()
        whose = {"task": self.task, "split": self.split, "metric": self.metric}
        return {**whose, "value": self.value, "low": low, "high": high, "n": self.n}

    @classmethod
    def pooled(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """Evaluations of parts of a test set as one, such as TruthfulQA's two folds, whose examples differ.

        Raises:
            ValueError: none, or of several metrics or splits.
        """
        if not parts or len({(part.metric, part.split, tuple(part.scores)) for part in parts}) > 1:
            raise ValueError(f"cannot pool {[str(part) for part in parts]}; wanted evaluations of one metric and one split")
        return cls(
            " + ".join(dict.fromkeys(part.task for part in parts)),
            parts[0].split,
            parts[0].metric,
            {name: tuple(score for part in parts for score in part.scores[name]) for name in parts[0].scores},
            tuple(text for part in parts for text in part.texts),
            sum(part.generated for part in parts),
            {"parts": [dict(part.task_settings) for part in parts]},
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; `Evaluation.from_json` reads it back."""
        return {
            "task": self.task,
            "split": self.split,
            "metric": self.metric,
            "value": self.value,
            "n": self.n,
            "interval": list(self.interval()),
            "scores": {name: list(scores) for name, scores in self.scores.items()},
            "texts": list(self.texts),
            "generated": self.generated,
            "task_settings": dict(self.task_settings),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Evaluation":
        scores = {name: tuple(values) for name, values in stored["scores"].items()}
        texts, settings = tuple(stored["texts"]), stored.get("task_settings", {})  # which older files do not have
        return cls(stored["task"], stored["split"], stored["metric"], scores, texts, stored["generated"], settings)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.task} {self.metric} {self.value:.3f} [{low:.3f}, {high:.3f}] (n = {self.n}, {self.split})"
