"""What happens when one task borrows another's heads (paper section 6, Figure 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lofit_lens.outcomes import Evaluation


@dataclass(frozen=True)
class TransferTable:
    """Evaluations of offsets learned for a target task at the heads of a source.

    Args:
        evaluations: for each (source, target); sources are tasks, and whatever else chose heads ("random", "base").
        sources: rows, in order.
        targets: columns, in order.
    """

    evaluations: Mapping[tuple[str, str], Evaluation]
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """The metric of each cell in [0, 1]: one row per source, one column per target."""
        rows = [[self.evaluations[source, target].value for target in self.targets] for source in self.sources]
        return pd.DataFrame(rows, index=pd.Index(self.sources, name="heads of"), columns=pd.Index(self.targets, name="task"))

    def to_json(self) -> list[dict[str, Any]]:
        """One record per cell: whose heads, and the evaluation with every example's outcome; `from_json` reads it back."""
        cells = [(source, target) for source in self.sources for target in self.targets]
        return [{"heads_of": source, **self.evaluations[source, target].to_json()} for source, target in cells]

    @classmethod
    def from_json(cls, records: Sequence[Mapping[str, Any]]) -> "TransferTable":
        evaluations = {(record["heads_of"], record["task"]): Evaluation.from_json(record) for record in records}
        sources = tuple(dict.fromkeys(source for source, _ in evaluations))
        return cls(evaluations, sources, tuple(dict.fromkeys(target for _, target in evaluations)))
