"""What happens when one task borrows another's heads (paper section 6, Figure 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lofit_lens.evaluation import Evaluation


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
        """One record per cell: value, n and 95 % interval."""
        records = []
        for source in self.sources:
            for target in self.targets:
                evaluation = self.evaluations[source, target]
                low, high = evaluation.interval()
                records.append(
                    {
                        "heads_of": source,
                        "task": target,
                        "metric": evaluation.metric,
                        "value": evaluation.value,
                        "n": evaluation.n,
                        "low": low,
                        "high": high,
                    }
                )
        return records
