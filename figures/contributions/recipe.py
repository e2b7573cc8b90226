"""What each head's edit contributes: how much the right answers' loss rises when one head alone is left out.

LoFiT's edits (seed 0) of the runs that `figures/saved.py` names, on 20 validation examples; nats an answer.
Truth is trained by DPO, which sets right answers against wrong ones: their own likelihood may well fall.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import HEADS_PER_KV, TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.causal import leave_one_out_scores
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        yield name, leave_one_out_scores(model(), task, adapter(name))


def draw(results: Mapping[str, Any]) -> dict[str, Any]:
    of_tasks = {name: results[name] for name in TASKS}
    return {"maps": plots.head_heatmaps(of_tasks, heads_per_kv=HEADS_PER_KV, title="What each head's edit contributes")}
