"""LoFiT with more or fewer heads, and with more or fewer training examples: the fits that this folder's figures evaluate.

SmolLM2-135M-Instruct (dequantised, float32), seeds 0 and 1, offset learning rates as `figures/methods` picked them on the
validation split, at 10 % of heads and 100 examples. Of heads: 1, 3, 20 and 50 % of all 270 by the first step of those runs,
which have the 10 % themselves. Of examples: both steps anew, passing over the examples as often as makes about 500 (the 1,000
once; Truth has no more than 801), so that it is examples that differ and not how long is trained.

    python -m figures.sweeps.study                  # run what is missing
    python -m figures.sweeps.study truth examples   # only this task, and only this sweep; several can run side by side
"""

import itertools
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lofit_lens as ll
from figures.methods.study import cell_path
from figures.saved import SEEDS, model, scores
from figures.studies import LOFIT, SIZES, known
from figures.studies import TASKS as ALL_TASKS

RESULTS = Path(__file__).parent / "results"
#: Of all heads.
SHARES = (0.01, 0.03, 0.1, 0.2, 0.5)
#: Training examples, and how often they are passed over.
EPOCHS = {20: 25, 50: 10, 100: 5, 300: 2, 800: 1, 1000: 1}
LARGEST = {"kinship": 1000, "counterfactual": 1000, "truth": 800}
SWEEPS = ("heads", "examples")
TASKS = {name: ALL_TASKS[name] for name in LARGEST}
#: What `figures/methods` has fitted.
SHARE_THERE, EXAMPLES_THERE = 0.1, 100


def places(task_name: str, sweep: str) -> tuple[float, ...]:
    """Where that sweep of the task has fits."""
    return SHARES if sweep == "heads" else (20, 50, 100, 300, LARGEST[task_name])


def evaluation(task_name: str, sweep: str, x: float, seed: int) -> ll.Evaluation:
    """On 200 test examples, of what was fitted there.

    Raises:
        FileNotFoundError: nothing has been.
    """
    if (sweep, x) in (("heads", SHARE_THERE), ("examples", EXAMPLES_THERE)):
        return ll.Evaluation.from_json(lofit_cell(task_name, seed)["test"])
    return ll.load_result(folder_of(task_name, sweep, x, seed) / "evaluation.json", ll.Evaluation)


def lofit_cell(task_name: str, seed: int) -> dict[str, Any]:
    """Of `figures/methods`."""
    return json.loads(cell_path(task_name, "LoFiT", seed).read_text())


def folder_of(task_name: str, sweep: str, x: float, seed: int) -> Path:
    return RESULTS / f"{task_name}-{sweep}-{x:g}-seed{seed}"


def run(task_name: str, sweep: str, x: float, seed: int) -> None:
    cell = lofit_cell(task_name, 0)
    method = replace(LOFIT, offset_lr=cell["trials"][cell["chosen"]]["settings"]["offset_lr"])
    task = TASKS[task_name]
    if sweep == "heads":
        method = replace(method, heads=scores(task_name, seed).top(x))
    else:
        task = type(task)(**SIZES | {"n_train": int(x)})
        method = replace(method, scale_epochs=EPOCHS[int(x)], offset_epochs=EPOCHS[int(x)])
    folder = folder_of(task_name, sweep, x, seed)
    adapter = method.fit(model(), task, seed=seed).intervention
    adapter.save(folder, model(), overwrite=True)
    ll.save_result(ll.evaluate(model(), task, adapter), folder / "evaluation.json")
    logging.info("%s is done", folder.name)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    words = known(sys.argv[1:], SWEEPS, TASKS)
    sweeps = [sweep for sweep in SWEEPS if sweep in words] or SWEEPS
    task_names = [name for name in TASKS if name in words] or TASKS
    for sweep, task_name in itertools.product(sweeps, task_names):
        for x, seed in itertools.product(places(task_name, sweep), SEEDS):
            try:
                evaluation(task_name, sweep, x, seed)
            except FileNotFoundError:
                run(task_name, sweep, x, seed)


if __name__ == "__main__":
    main()
