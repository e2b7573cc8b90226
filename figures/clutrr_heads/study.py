"""Which 27 heads should carry the offsets for CLUTRR? LoFiT's choice, random heads, and choices spread over the layers.

SmolLM2-135M-Instruct (dequantised), float32; 300 training stories (data seed 42); step 1 with learning rate 1e-2, l1 1e-3,
5 epochs, batch 8; step 2 at 5e-2 unless the cell says otherwise. Each cell writes one JSON file beside this script and is
skipped when that file exists, so the study can be stopped and started at any time. About ten minutes a cell on two cores.

    python figures/clutrr_heads/study.py                 # run what is missing
    python figures/clutrr_heads/study.py random          # only that way to choose heads; several can run side by side
    python figures/clutrr_heads/study.py table           # what has come out
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import lofit_lens as ll
from lofit_lens.files import write_text_atomically
from lofit_lens.statistics import mean_interval

RESULTS = Path(__file__).parent / "results"
K = 27
BASE = ll.methods.LoFiT(k=K, scale_lr=1e-2, l1=1e-3, offset_lr=5e-2)
VALIDATION = 200
SEEDS = 3
CHOICES = ("lofit", "random", "one-per-layer")


def scores_of(model, task, seed: int) -> ll.HeadScores:
    path = RESULTS / f"scores-seed{seed}.json"
    if not path.exists():
        write_text_atomically(path, json.dumps({"scores": BASE.select(model, task, seed=seed).values.tolist()}))
    return ll.HeadScores(torch.tensor(json.loads(path.read_text())["scores"]))


def one_per_layer(scores: ll.HeadScores, k: int) -> tuple[ll.Head, ...]:
    """The best head of each layer, and of those the best k."""
    best = [next(head for head in scores.rank() if head.layer == layer) for layer in range(scores.values.shape[0])]
    return tuple(sorted(best, key=lambda head: -scores[head])[:k])


def heads_of(model, task, choice: str, seed: int) -> tuple[ll.Head, ...]:
    if choice == "random":
        return ll.random_scores(model, seed=seed).top(K)
    scores = scores_of(model, task, seed)
    return one_per_layer(scores, K) if choice == "one-per-layer" else scores.top(K)


def run_cell(model, task, choice: str, seed: int, offset_lr: float) -> None:
    path = RESULTS / f"{choice}-lr{offset_lr:g}-seed{seed}.json"
    if path.exists():
        return
    heads = heads_of(model, task, choice, seed)
    fit = replace(BASE, heads=heads, offset_lr=offset_lr).fit(model, task, seed=seed)
    outcome = {
        "choice": choice,
        "seed": seed,
        "offset_lr": offset_lr,
        "heads": [head.label for head in heads],
        "losses": fit.losses["offset"],
        "val": ll.evaluate(model, task, fit.intervention, split="val").to_json(),
        "test": ll.evaluate(model, task, fit.intervention, split="test").to_json(),
    }
    write_text_atomically(path, json.dumps(outcome))
    logging.info("%s: val %.3f, test %.3f", path.stem, outcome["val"]["value"], outcome["test"]["value"])


def table() -> pd.DataFrame:
    """A row for each choice whose three seeds have run: means over seeds, and test accuracy against random heads.

    The interval of the difference is a bootstrap over test stories, paired, of the mean over seeds; three seeds are too few
    to resample, so they are printed one by one.
    """
    rows = {}
    cells = {choice: [_cell(choice, seed) for seed in range(SEEDS)] for choice in CHOICES}
    random_scores = _mean_scores(cells["random"])
    for choice, found in cells.items():
        rows[choice] = {
            "val (n = 200)": _mean([cell["val"]["value"] for cell in found]),
            "test (n = 450)": _mean([cell["test"]["value"] for cell in found]),
            "test by seed": ", ".join(f"{cell['test']['value']:.3f}" for cell in found),
            "minus random": "" if choice == "random" else _difference(_mean_scores(found), random_scores),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _difference(scores: list[float], others: list[float]) -> str:
    differences = [own - other for own, other in zip(scores, others, strict=True)]
    low, high = mean_interval(differences)
    return f"{_mean(differences):+.3f} [{low:+.3f}, {high:+.3f}]"


def _cell(choice: str, seed: int) -> dict[str, Any]:
    return json.loads((RESULTS / f"{choice}-lr{BASE.offset_lr:g}-seed{seed}.json").read_text())


def _mean_scores(cells: list[dict[str, Any]]) -> list[float]:
    return [_mean(list(of_seeds)) for of_seeds in zip(*(cell["test"]["scores"]["exact_match"] for cell in cells), strict=True)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    RESULTS.mkdir(exist_ok=True)
    if sys.argv[1:] == ["table"]:
        print(table().round(3).to_string())
        return
    model = ll.load_model("smollm2-135m-instruct")
    task = ll.tasks.CLUTRR(seed=42, n_val=VALIDATION)
    for choice in sys.argv[1:] or CHOICES:
        for seed in range(SEEDS):
            run_cell(model, task, choice, seed, BASE.offset_lr)


if __name__ == "__main__":
    main()
