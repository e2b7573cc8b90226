"""Finished runs on disk, each in a folder named by a hash of what was run: same settings, already done."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lofit_lens.files import new_folder, recover_folder
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import Adapter, load_adapter
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Fit
from lofit_lens.outcomes import Evaluation
from lofit_lens.plain import from_plain, to_plain

RUN_FILE = "run.json"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, eq=False)
class Run:
    """One cell: what was run, and what came out. `fit` is None where the base model was evaluated."""

    settings: Mapping[str, Any]
    fit: Fit[Adapter] | None
    evaluation: Evaluation


class RunStore:
    """Runs under one folder. A run is there whole or not at all, whatever kills the process.

    Args:
        root: the folder; made when the first run is stored.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, settings: Mapping[str, Any]) -> Path:
        """Where a run with these settings (plain JSON values) lives."""
        canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return self.root / hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def get(self, settings: Mapping[str, Any], model: LensModel) -> Run | None:
        """The stored run, or None if there is none.

        Raises:
            ValueError: it is damaged; the message names the folder to delete.
        """
        folder = self.folder(settings)
        recover_folder(folder)
        if not (folder / RUN_FILE).is_file():
            return None
        try:
            stored = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            fit = None if stored["losses"] is None else self._read_fit(folder, stored, model)
            return Run(stored["settings"], fit, Evaluation.from_json(stored["evaluation"]))
        except (KeyError, TypeError, AttributeError, ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"the run in {folder} is damaged, or of another base model ({error}); delete that folder, and it will "
                "be run again"
            ) from error

    def put(self, run: Run, model: LensModel) -> Path:
        """Store a run in one atomic step.

        Raises:
            OSError: the folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        fit = run.fit
        stored = {
            "settings": dict(run.settings),
            "evaluation": run.evaluation.to_json(),
            "losses": None if fit is None else {stage: list(losses) for stage, losses in fit.losses.items()},
            "scores": None if fit is None or fit.scores is None else to_plain(fit.scores),
        }
        with new_folder(self.folder(run.settings), overwrite=True) as draft:
            (draft / RUN_FILE).write_text(json.dumps(stored, indent=1), encoding="utf-8")
            if fit is not None:
                fit.intervention.save(draft / ADAPTER_FOLDER, model)
        return self.folder(run.settings)

    @staticmethod
    def _read_fit(folder: Path, stored: Mapping[str, Any], model: LensModel) -> Fit[Adapter]:
        return Fit(
            intervention=load_adapter(folder / ADAPTER_FOLDER, model),
            scores=None if stored["scores"] is None else from_plain(HeadScores, stored["scores"]),
            losses={stage: tuple(losses) for stage, losses in stored["losses"].items()},
        )
