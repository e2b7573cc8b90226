"""What each head's edit contributes: how much of what training raised is lost when one head alone is left out.

LoFiT's edits (seed 0) of the runs that `figures/saved.py` names, on 20 validation examples; nats an answer. For Kinship and
Counterfactual it is the log-likelihood of the right answer; for Truth, which is trained by DPO, its margin over the wrong one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from figures.saved import TASKS, adapter, model
from lofit_lens import plots
from lofit_lens.causal import leave_one_out_scores
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    for name, task in TASKS.items():
        yield name, leave_one_out_scores(model(), task, adapter(name))


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    by_quantity: dict[str, dict[str, Any]] = {}
    for name in TASKS:
        by_quantity.setdefault(results[name].quantity, {})[name] = results[name]
    # Likelihoods and margins are no numbers for one colour scale.
    answers, margins = by_quantity.values()
    title = "What each head's edit contributes"
    return {
        "maps": plots.head_heatmaps(answers, title=title, columns=columns),
        "margins": plots.head_heatmaps(margins, title=title, columns=columns),
    }
