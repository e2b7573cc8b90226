"""Who lends heads to whom: each of six tasks learned on its own heads, on every other task's, on ITI's and on random ones.

SmolLM2-135M-Instruct (dequantised, bfloat16), three seeds; sizes are in `study.toml`, and every run is in `store`. Figure 2 of
the LoFiT paper (arXiv 2406.01563) on a model a fiftieth as large; the heads that tasks have in common, seeds on the diagonal,
are its Figure 6.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lofit_lens as ll
from figures.transfers import transfers_and_overlap
from lofit_lens import plots
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result

HERE = Path(__file__).parent
#: Shares of all heads.
FEW, MORE = 0.03, 0.1


def compute() -> Iterator[tuple[str, Result]]:
    study, store = ll.Study.from_file(HERE / "study.toml"), ll.RunStore(HERE / "store")
    yield from transfers_and_overlap(study, store, (FEW, MORE))


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    return {
        "transfer": plots.head_transfer(
            results[f"transfer-{FEW:g}"], title="Tasks on each other's heads (3 %)", columns=columns
        ),
        "more": plots.head_transfer(results[f"transfer-{MORE:g}"], title="On own and random heads (10 %)", columns=columns),
        "overlap": plots.overlap_matrix(results["overlap"], title="Heads in common, of 8", columns=columns),
        "distance": plots.overlap_matrix(results["overlap"], "emd", title="How far apart in layers", columns=columns),
    }
