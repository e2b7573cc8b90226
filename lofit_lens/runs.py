"""One finished run as a folder: read back equal, and readable by others (JSON, JSON lines, Parquet, safetensors).

run.json          what was run, and what came out
adapter/          the edit, if there is one, with the head scores that its method made
metrics.jsonl     the loss of every step of every stage
outcomes.parquet  a row for every example and metric: the run's labels, `example`, `metric`, `score`, `text`
environment.json  versions, machine
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lofit_lens import lens
from lofit_lens.adapters import SCORES_FILE
from lofit_lens.files import write_json_atomically
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import Adapter, load_adapter
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Fit
from lofit_lens.outcomes import Evaluation
from lofit_lens.results import load_result, save_result

RUN_FILE = "run.json"
ADAPTER_FOLDER = "adapter"
METRICS_FILE = "metrics.jsonl"
OUTCOMES_FILE = "outcomes.parquet"
ENVIRONMENT_FILE = "environment.json"
#: Of the folder's form.
SCHEMA = 1
#: Of the library: raised when the same settings come to give another result.
CODE_SCHEMA = 1
#: What runs are called by, and the dtype of that column in a table. `k` is a count of heads, or a share of them below 1.
LABELS = {
    "model": "string",
    "task": "string",
    "method": "string",
    "heads": "string",
    "k": "Float64",
    "n_train": "Int64",
    "seed": "Int64",
}
_PREFIXES = {"k": "k", "n_train": "n", "seed": "seed"}


@dataclass(frozen=True, eq=False)
class Run:
    """One cell: what was run, and what came out.

    Args:
        settings: all that determines the result, as plain JSON values.
        fit: what was fitted; None where the base model was evaluated.
        evaluation: how well it does.
        labels: what tables call it by: some of `LABELS`.
        seconds: what each part of it took, by the clock.
        trials: what was tried on the validation split where something was chosen there.
        environment: where it was made; see `environment_of`.
    """

    settings: Mapping[str, Any]
    fit: Fit[Adapter] | None
    evaluation: Evaluation
    labels: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def key_of(settings: Mapping[str, Any]) -> str:
    """A short hash of what determines a result: plain JSON values in any order.

    Raises:
        ValueError: NaN.
        TypeError: something else than plain values.
    """
    canonical = json.dumps({"code": CODE_SCHEMA, **settings}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def name_of(labels: Mapping[str, Any]) -> str:
    """The labels as part of a file's name, such as `smollm2-135m-instruct.kinship.lofit.truth.k0.1.n100.seed0`."""
    said = [f"{_PREFIXES.get(label, '')}{labels[label]}" for label in LABELS if labels.get(label) is not None]
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in ".".join(said))


def write_run(folder: Path, run: Run, model: LensModel | None = None) -> None:
    """Write a run into an empty folder.

    Args:
        folder: where to.
        run: what to write.
        model: the model that its edit is for; not needed where the edit says so itself.

    Raises:
        ValueError: nobody has said which model it is for.
    """
    evaluation = run.evaluation.to_json()
    scores, texts = evaluation.pop("scores"), evaluation.pop("texts")
    stored = {
        "schema": SCHEMA,
        "settings": dict(run.settings),
        "labels": dict(run.labels),
        "n_parameters": None if run.fit is None else run.fit.intervention.n_parameters,
        "evaluation": {**evaluation, "metrics": list(scores), "has_texts": bool(texts)},
        "seconds": dict(run.seconds),
        "trials": [dict(trial) for trial in run.trials],
        "stages": None if run.fit is None else list(run.fit.losses),
    }
    write_json_atomically(folder / RUN_FILE, stored)
    write_json_atomically(folder / ENVIRONMENT_FILE, dict(run.environment))
    _outcomes(run, texts).to_parquet(folder / OUTCOMES_FILE, index=False)
    if run.fit is not None:
        lines = [
            {"stage": stage, "step": step, "loss": loss}
            for stage, losses in run.fit.losses.items()
            for step, loss in enumerate(losses)
        ]
        (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        run.fit.intervention.save(folder / ADAPTER_FOLDER, model)
        if run.fit.scores is not None:
            save_result(run.fit.scores, folder / ADAPTER_FOLDER / SCORES_FILE)


def read_run(folder: Path, model: LensModel | None = None) -> Run:
    """Read a run's folder.

    Args:
        folder: as `write_run` fills it.
        model: which the run's edit must be of, if given.

    Raises:
        ValueError: it is damaged, or of another base model; the message names the folder to delete.
    """
    with _damage_named(folder):
        stored = read_summary(folder)
        fit = None if stored["stages"] is None else _read_fit(folder, stored["stages"], model)
        environment = json.loads((folder / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        evaluation, trials = _read_evaluation(folder, stored["evaluation"]), tuple(stored["trials"])
        return Run(stored["settings"], fit, evaluation, stored["labels"], stored["seconds"], trials, environment)


def read_evaluation(folder: Path) -> Evaluation:
    """A run's evaluation alone, which is read faster than its edit.

    Raises:
        ValueError: it is damaged; the message names the folder to delete.
    """
    with _damage_named(folder):
        return _read_evaluation(folder, read_summary(folder)["evaluation"])


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ValueError(
            f"the run in {folder} is damaged, or of another base model ({error}); delete that folder, and it will be run again"
        ) from error


def read_summary(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it in short: all but the edit, the losses and the outcomes.

    Raises:
        ValueError: it is damaged, or of another form.
        FileNotFoundError: no run is there.
    """
    stored = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if stored.get("schema") != SCHEMA:
        raise ValueError(f"{folder / RUN_FILE} has schema {stored.get('schema')!r}, this lofit-lens reads {SCHEMA}")
    return stored


def summary_row(folder: Path, labels: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """A run as a row of a table: its labels (or others), the metric in [0, 1] with its 95 % interval, n, numbers in the edit,
    the seconds of each part, and its folder.

    Raises:
        ValueError: it is damaged.
    """
    with _damage_named(folder):
        summary = read_summary(folder)
        found = summary["evaluation"]
        low, high = found["interval"]
        of_run = {
            "split": found["split"],
            "metric": found["metric"],
            "value": found["value"],
            "low": low,
            "high": high,
            "n": found["n"],
            "n_parameters": summary["n_parameters"] or 0,
            **{f"{part}_seconds": seconds for part, seconds in summary["seconds"].items()},
            "folder": folder.name,
        }
        return pd.concat([label_frame(labels or summary["labels"], 1), pd.DataFrame([of_run])], axis=1)


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """Every step's `stage`, `step` and `loss`; none where the base model was evaluated."""
    path = folder / METRICS_FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def environment_of(model: LensModel) -> dict[str, Any]:
    """What a result may depend on beside its settings: versions, the machine and its instructions, threads, device, dtype."""
    weight = next(iter(lens.weights(model)))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: version(name) for name in ("lofit-lens", "transformer-lens", "transformers", "torch")},
    }


def label_frame(labels: Mapping[str, Any], n_rows: int) -> pd.DataFrame:
    """Columns that say of every row which run it is of; a label that a run does not have is missing."""
    columns = {label: pd.Series([labels.get(label)] * n_rows, dtype=dtype) for label, dtype in LABELS.items()}
    return pd.DataFrame(columns)


def _outcomes(run: Run, texts: list[str]) -> pd.DataFrame:
    parts = []
    for metric, scores in run.evaluation.scores.items():
        of_metric = {"example": range(len(scores)), "metric": metric, "score": scores, "text": texts or None}
        parts.append(pd.concat([label_frame(run.labels, len(scores)), pd.DataFrame(of_metric)], axis=1))
    return pd.concat(parts, ignore_index=True).astype({"text": "string"})


def _read_evaluation(folder: Path, stored: dict[str, Any]) -> Evaluation:
    rows = pd.read_parquet(folder / OUTCOMES_FILE)
    of_metric = {metric: rows[rows["metric"] == metric] for metric in stored["metrics"]}
    scores = {metric: frame["score"].tolist() for metric, frame in of_metric.items()}
    texts = of_metric[stored["metric"]]["text"].tolist() if stored["has_texts"] else []
    return Evaluation.from_json({**stored, "scores": scores, "texts": texts})


def _read_fit(folder: Path, stages: list[str], model: LensModel | None) -> Fit[Adapter]:
    scores = folder / ADAPTER_FOLDER / SCORES_FILE
    losses: dict[str, list[float]] = {stage: [] for stage in stages}
    for line in read_losses(folder):
        losses[line["stage"]].append(line["loss"])
    return Fit(
        intervention=load_adapter(folder / ADAPTER_FOLDER, model),
        scores=load_result(scores, HeadScores) if scores.exists() else None,
        losses={stage: tuple(values) for stage, values in losses.items()},
    )
