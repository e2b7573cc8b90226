"""How many heads and training examples LoFiT needs on Gemma 3 270M, and what RED and LoRA do with as many examples.

Counterfactual on Gemma 3 270M (dequantised from four bits, bfloat16), 200 test questions, two seeds; sizes are in `study.toml`,
and every run is in the store of `figures/transfer`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lofit_lens as ll
from lofit_lens import plots
from lofit_lens.analysis import Sweep
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result

HERE = Path(__file__).parent
TASK = "counterfactual"
METHODS = {"LoFiT": "lofit", "RED": "red", "LoRA": "lora"}
#: Where the other of the two is varied.
SHARE, N_TRAIN = 0.1, 50


def compute() -> Iterator[tuple[str, Result]]:
    study, store = ll.Study.from_file(HERE / "study.toml"), ll.RunStore(HERE.parent / "transfer" / "store")
    ll.run_study(study, store)
    runs = {cell: run for cell, run in ll.study.runs(study, store).items() if cell.task == TASK}

    def evaluations(method: str, k: float | None, n_train: int) -> tuple[ll.Evaluation, ...]:
        place = (method, k, n_train)
        return tuple(run.evaluation for cell, run in runs.items() if (cell.method, cell.k, cell.n_train) == place)

    shares = {100 * k: evaluations("lofit", k, N_TRAIN) for k in study.k}
    yield "heads", Sweep("heads (% of all)", shares)
    for name, method in METHODS.items():
        k = SHARE if method == "lofit" else None
        yield f"examples-{name}", Sweep("training examples", {n: evaluations(method, k, n) for n in study.n_train})


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    by_method = {name: results[f"examples-{name}"] for name in METHODS}
    return {
        "heads": plots.sweep_curves({"LoFiT": results["heads"]}, title="Counterfactual by heads (Gemma)", columns=columns),
        "examples": plots.sweep_curves(by_method, title="Counterfactual by examples (Gemma)", columns=columns),
    }
