"""Where three tasks' scaling moved most, and each task learned at the others' heads: what `lofit-lens demo` shows.

SmolLM2-135M-Instruct (dequantised), the settings of `lofit_lens/demo.py`, seed 0; 232 s on two CPU cores.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from lofit_lens import demo, load_result
from lofit_lens.plots.template import Columns
from lofit_lens.results import Result


def compute() -> Iterator[tuple[str, Result]]:
    out = Path("runs/demo")
    yield "transfer", demo.run(out, model_name="smollm2-135m-instruct", tasks=demo.TASKS, console=Console())
    for task in demo.TASKS:
        yield task.name, load_result(out / "data" / f"{task.name}.json")


def draw(results: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    scores = {task.name: results[task.name] for task in demo.TASKS}
    return demo.figures(scores, results["transfer"], columns)
