"""What a report is made of: runs and results on disk, read without a model."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lofit_lens.adapters import CONFIG_FILE, SCORES_FILE, read_adapter
from lofit_lens.heads import Head, HeadScores
from lofit_lens.interventions import HeadIntervention, load_adapter
from lofit_lens.outcomes import Evaluation
from lofit_lens.results import Result, load_result
from lofit_lens.runs import ADAPTER_FOLDER, RUN_FILE, read_evaluation, read_summary

#: The method of a run without an edit.
BASE = "base model"
WANTED = (
    f"wanted folders of runs as RunStore writes them, of adapters, or of results, or files as save_result writes them "
    f"({RUN_FILE}, {CONFIG_FILE}, *.json)"
)


@dataclass(frozen=True, eq=False)
class ShownRun:
    """A run, or an adapter alone: what is known of it, and what came out.

    Args:
        folder: the name of its folder.
        task: what it was fitted or evaluated on.
        method: what made the edit; `BASE` where there is none.
        seed: None where nobody has said.
        model: its name, or its fingerprint where nothing else is known.
        fingerprint: of the base model, where its name is known too.
        settings: of the method.
        task_settings: which examples.
        heads: those that are edited, or none.
        n_layers: of the model; 0 if it is not known.
        n_parameters: how many numbers the edit is made of.
        scores: of all heads, where heads were chosen.
        evaluation: how well it does.
        labels: what its study calls it by (`runs.LABELS`); none where it is of no study.
        digest: of what the adapter is: tells one that is in two places.
    """

    folder: str
    task: str
    method: str
    seed: Any
    model: str
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    task_settings: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[Head, ...] = ()
    n_layers: int = 0
    n_parameters: int = 0
    scores: HeadScores | None = None
    evaluation: Evaluation | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None

    @property
    def label(self) -> str:
        lent = self.labels.get("heads") or "own"
        heads = [] if lent == "own" else [f"heads: {lent}"]
        return ", ".join([self.task, self.method, *heads, *([] if self.seed is None else [f"seed {self.seed}"])])


@dataclass(frozen=True)
class Findings:
    """Everything that was found, in the order in which it is shown."""

    runs: tuple[ShownRun, ...]
    results: Mapping[str, Result]


def read_sources(sources: Iterable[str | Path]) -> Findings:
    """Read runs, adapters and results; in folders, whatever is below them.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing to show, something else, or something damaged.
    """
    if isinstance(sources, str | Path):
        raise ValueError(f"got one path, {str(sources)!r}; wanted a list of them")
    runs: list[ShownRun] = []
    results: dict[str, Result] = {}
    seen: set[Path] = set()
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"there is no {source}; {WANTED}")
        found = list(_found_at(source))
        if not found:
            raise ValueError(f"got {source}, in which nothing can be shown; {WANTED}")
        for path in found:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            if path.is_dir():
                runs.append(_read_run(path) if (path / RUN_FILE).is_file() else _read_adapter(path))
            else:
                results[_name(path, source, results)] = load_result(path)
    if not seen:
        raise ValueError(f"got no sources; {WANTED}")
    return Findings(_in_order(_once(runs)), results)


def _found_at(path: Path) -> Iterator[Path]:
    """Folders of runs and of adapters, and files with results."""
    if path.is_file() or any((path / file).is_file() for file in (RUN_FILE, CONFIG_FILE)):
        yield path
    else:
        for entry in sorted(path.iterdir()):
            if entry.name.startswith("."):  # drafts, and what a killed writer has left
                continue
            if entry.is_dir() or (entry.suffix == ".json" and _is_result(entry)):
                yield from _found_at(entry)


def _is_result(path: Path) -> bool:
    """Other files of JSON may lie beside results; one that is no JSON at all is damaged."""
    stored = _json_of(path)
    return isinstance(stored, dict) and {"result", "schema"} <= set(stored)


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); it is damaged: write it again, or remove it") from error


def _name(path: Path, source: Path, taken: Mapping[str, Any]) -> str:
    """A result's own name, with its folder's where the name is taken."""
    ending = len(path.suffix)
    names = [path.name[:-ending], f"{path.parent.name}/{path.name[:-ending]}", str(path)[:-ending]]
    if source.is_dir():
        names.insert(0, path.relative_to(source).as_posix()[:-ending])
    return next((name for name in names if name not in taken), str(path))


def _read_adapter(folder: Path) -> ShownRun:
    config, _ = read_adapter(folder)
    adapter = load_adapter(folder)
    scores = folder / SCORES_FILE
    try:
        made_by, base = dict(adapter.made_by), dict(adapter.base_model or {})
        origin = _origin(made_by)
        return ShownRun(
            folder=folder.name,
            task=str(origin.get("task", "")),
            method=_method(made_by),
            seed=origin.get("seed"),
            model=str(base.get("name", "")),
            fingerprint=str(base.get("fingerprint", "")),
            settings=dict(origin.get("settings") or {}),
            task_settings=dict(origin.get("task_settings") or {}),
            heads=adapter.heads if isinstance(adapter, HeadIntervention) else (),
            n_layers=int(base.get("n_layers", 0)),
            n_parameters=adapter.n_parameters,
            scores=load_result(scores, HeadScores) if scores.is_file() else None,
            digest=json.dumps([config["vectors_sha256"], config.get("heads"), made_by], sort_keys=True),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} has values of another form ({error!r}); save the adapter again") from error


def _read_run(folder: Path) -> ShownRun:
    evaluation, summary = read_evaluation(folder), read_summary(folder)
    labels = summary["labels"]
    task = str(labels.get("task", evaluation.task))
    known = {"folder": folder.name, "task": task, "evaluation": evaluation, "labels": labels}
    if summary["stages"] is not None:
        return replace(_read_adapter(folder / ADAPTER_FOLDER), **known)
    model = str(labels.get("model", summary["settings"].get("model", "")))
    return ShownRun(method=BASE, seed=None, model=model, task_settings=evaluation.task_settings, **known)


def _origin(made_by: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of what an edit was made of: an edit times a number, or a sum of edits, names them."""
    if "of" in made_by:
        return _origin(made_by["of"])
    return _origin(made_by["sum_of"][0]) if made_by.get("sum_of") else made_by


def _method(made_by: Mapping[str, Any]) -> str:
    if "of" in made_by:
        return f"{made_by['strength']:g} x {_method(made_by['of'])}"
    if made_by.get("sum_of"):
        return " + ".join(map(_method, made_by["sum_of"]))
    return str(made_by.get("method", "unknown"))


def _once(runs: Sequence[ShownRun]) -> list[ShownRun]:
    """Without adapters that are in two places, as those of a run may be."""
    of_runs = {run.digest for run in runs if run.evaluation is not None}
    kept: dict[Any, ShownRun] = {}
    for run in runs:
        if run.evaluation is not None or run.digest not in of_runs:
            kept.setdefault(run.digest if run.evaluation is None else (run.folder, len(kept)), run)
    return list(kept.values())


def _in_order(runs: Iterable[ShownRun]) -> tuple[ShownRun, ...]:
    """By task, the base model first, then by method and seed."""
    return tuple(sorted(runs, key=lambda run: (run.task, run.method != BASE, run.method, str(run.seed), run.folder)))
