"""Who lends heads to whom on Gemma 3 270M: three tasks on their own, each other's and other ways' heads.

Gemma 3 270M (dequantised from four bits, bfloat16), 10 % (7) of its 72 heads, three seeds; sizes are in `study.toml`, and every
run is in the store of `figures/transfer`.
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
#: Of all heads.
SHARE = 0.1


def compute() -> Iterator[tuple[str, Result]]:
    study, store = ll.Study.from_file(HERE / "study.toml"), ll.RunStore(HERE.parent / "transfer" / "store")
    yield from transfers_and_overlap(study, store, (SHARE,))


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    return {
        "transfer": plots.head_transfer(
            results[f"transfer-{SHARE:g}"], title="Tasks on each other's heads (Gemma, 10 %)", columns=columns
        ),
        "overlap": plots.overlap_matrix(results["overlap"], title="Heads in common, of 7", columns=columns),
    }
