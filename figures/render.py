"""Draw the figures again from the numbers beside them; nothing is recomputed. `make figures`.

Each folder has the numbers as JSON, the figure as one HTML file, and a PNG where a Chrome or Chromium is found.
"""

import json
import logging
from pathlib import Path

import plotly.graph_objects as go

from lofit_lens import demo, save_figure
from lofit_lens.analysis import TransferTable
from lofit_lens.store import scores_from_json

FOLDER = Path(__file__).parent


def demo_figures() -> dict[str, go.Figure]:
    """From what `lofit-lens demo` wrote (`heads.json`, `transfer.json`)."""
    folder = FOLDER / "demo"
    heads = json.loads((folder / "heads.json").read_text())
    scores = {task: scores_from_json(stored) for task, stored in heads.items()}
    selected = {task: [tuple(head) for head in stored["selected"]] for task, stored in heads.items()}
    table = TransferTable.from_json(json.loads((folder / "transfer.json").read_text()))
    return {f"demo/{name}": figure for name, figure in demo.figures(scores, selected, table).items()}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, figure in demo_figures().items():
        for path in save_figure(figure, FOLDER / name, images=("png",), offline=False):
            logging.info("%s", path)


if __name__ == "__main__":
    main()
