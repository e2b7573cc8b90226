"""Finished runs on disk, each in a folder named by a hash of what determines it: same settings, already done.

    ROOT/runs/NAME-KEY/          a finished run: see `runs`
    ROOT/scores/NAME-KEY.json    head scores that several runs start from
    ROOT/activations/            what heads put out, for whoever asks for the same again
    ROOT/residuals/              what enters the lowest block that an edit is in, likewise
    ROOT/failures/KEY.json       what could not be run, and why
    ROOT/unfinished/KEY/         what an unfinished run goes on from
    ROOT/leases/KEY.json         who is at what
    ROOT/models.json             the fingerprint of every model that was loaded, by dtype and name
    ROOT/journal.jsonl           what was done when, and how long each part took

Everything is written in one step: a run is there whole or not at all, whatever kills the process. The Parquet files say what
run they are of, so that they can be queried as one table, in DuckDB for instance:

    SELECT task, heads, avg(score) FROM 'ROOT/runs/*/outcomes.parquet' WHERE metric = 'exact_match' GROUP BY ALL
"""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from lofit_lens.files import new_folder, write_json_atomically
from lofit_lens.heads import HeadScores
from lofit_lens.leases import is_leased, leased
from lofit_lens.lens import LensModel
from lofit_lens.results import load_result, save_result
from lofit_lens.runs import LABELS, OUTCOMES_FILE, RUN_FILE, Run, key_of, name_of, read_run, summary_row, write_run

JOURNAL = "journal.jsonl"
#: Of what a file is called by, ahead of its key.
NAME_BYTES = 140


class RunStore:
    """Runs under one folder, which several processes may share.

    Args:
        root: the folder, or its `file://` address; made when something is stored.

    Raises:
        ValueError: an address of something else than a folder.
        NotADirectoryError: a file is there.
    """

    def __init__(self, root: str | Path) -> None:
        if address := re.match(r"([a-z0-9]{2,}):/+", str(root)):  # two letters or more: C:/ is a drive
            if address[1] != "file":
                raise ValueError(f"got {str(root)!r}, wanted a folder: object stores rename nothing")
            root = f"/{str(root)[address.end() :]}"
        self.root = Path(root).absolute()  # whoever works at it may be somewhere else
        if self.root.is_file():
            raise NotADirectoryError(f"{self.root} is a file; wanted a folder for runs, there or yet to be made")

    def find(self, settings: Mapping[str, Any]) -> Path | None:
        """The folder of the finished run with these settings (plain JSON values), or None."""
        return self._at("runs", key_of(settings))

    def get(self, settings: Mapping[str, Any], model: LensModel | None = None) -> Run | None:
        """The stored run, or None if there is none.

        Args:
            settings: what determines it.
            model: which its edit must be of, if given.

        Raises:
            ValueError: it is damaged, or of another model; the message names the folder to delete.
        """
        folder = self.find(settings)
        return None if folder is None else read_run(folder, model)

    def put(self, run: Run, model: LensModel | None = None) -> Path:
        """Store a run in one atomic step. One that is there already has the same settings, and stands.

        Args:
            run: what to store.
            model: the model that its edit is for; not needed where the edit says so itself.

        Raises:
            ValueError: nobody has said which model it is for.
            OSError: the folder cannot be written.
        """
        if (found := self.find(run.settings)) is not None:
            return found
        folder = self.root / "runs" / _file_name(run.labels, key_of(run.settings))
        with suppress(FileExistsError), new_folder(folder) as draft:
            write_run(draft, run, model)
        return folder

    def find_scores(self, settings: Mapping[str, Any]) -> Path | None:
        """The file of the head scores with these settings, or None."""
        return self._at("scores", key_of(settings), ".json")

    def get_scores(self, settings: Mapping[str, Any]) -> HeadScores | None:
        """The stored head scores, or None if there are none.

        Raises:
            ValueError: they are damaged; the message names the file.
        """
        path = self.find_scores(settings)
        return None if path is None else load_result(path, HeadScores)

    def put_scores(self, settings: Mapping[str, Any], scores: HeadScores, labels: Mapping[str, Any]) -> Path:
        """Store head scores in one atomic step.

        Raises:
            OSError: the file cannot be written.
        """
        return save_result(scores, self.root / "scores" / f"{_file_name(labels, key_of(settings))}.json")

    def folders(self) -> list[Path]:
        """Of all finished runs, by name."""
        return sorted(path.parent for path in self.root.glob(f"runs/[!.]*/{RUN_FILE}"))

    def table(self) -> pd.DataFrame:
        """One row per run, by name: its labels, the metric in [0, 1] with its 95 % interval, n, numbers in the edit, the
        seconds of each part, and its folder.

        Raises:
            ValueError: a run that is damaged, or of another form.
        """
        rows = [summary_row(folder) for folder in self.folders()]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(LABELS))

    def outcomes(self) -> pd.DataFrame:
        """One row per run, example and metric: the run's labels, `example`, `metric`, `score`, `text` and its `folder`."""
        frames = [pd.read_parquet(folder / OUTCOMES_FILE).assign(folder=folder.name) for folder in self.folders()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(LABELS))

    def lease(self, key: str) -> AbstractContextManager[bool]:
        """Be the one who works at this key, if nobody else is: see `leases.leased`."""
        return leased(self._lease_path(key))

    def is_leased(self, key: str) -> bool:
        """Whether somebody works at this key now."""
        return is_leased(self._lease_path(key))

    def unfinished_folder(self, key: str) -> Path:
        """Where unfinished work keeps what it goes on from."""
        return self.root / "unfinished" / key

    def clear_up(self, key: str) -> None:
        """Remove what is left of work that is done by a process that was killed before it could."""
        folder = self.unfinished_folder(key)
        if folder.exists() or self._lease_path(key).exists():
            with self.lease(key) as is_ours:
                if is_ours:
                    shutil.rmtree(folder, ignore_errors=True)

    @property
    def activations_folder(self) -> Path:
        return self.root / "activations"

    @property
    def residuals_folder(self) -> Path:
        return self.root / "residuals"

    def failure(self, key: str) -> dict[str, Any] | None:
        """Why that could not be done, or None."""
        with suppress(FileNotFoundError):
            return json.loads(self._failure_path(key).read_text(encoding="utf-8"))
        return None

    def mark_failed(self, key: str, failure: Mapping[str, Any]) -> None:
        """Remember that this could not be done.

        Raises:
            OSError: it cannot be written.
        """
        write_json_atomically(self._failure_path(key), dict(failure))

    def forget_failure(self, key: str) -> None:
        self._failure_path(key).unlink(missing_ok=True)

    def fingerprints(self, dtype: str) -> dict[str, str]:
        """Of every model that was loaded for this store in that dtype, by name."""
        return self._all_fingerprints().get(dtype, {})

    def note_fingerprint(self, name: str, dtype: str, fingerprint: str) -> None:
        """Remember which model that is, so that what is done can be told without loading it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".models.lock"):
            known = self._all_fingerprints()
            if known.get(dtype, {}).get(name) != fingerprint:
                known[dtype] = {**known.get(dtype, {}), name: fingerprint}
                write_json_atomically(self.root / "models.json", known)

    def _all_fingerprints(self) -> dict[str, dict[str, str]]:
        with suppress(FileNotFoundError):
            return json.loads((self.root / "models.json").read_text(encoding="utf-8"))
        return {}

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the journal: what was done, and how long that took."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / JOURNAL, "ab+") as journal:
            end = journal.tell()
            journal.seek(max(end - 1, 0))
            cut_short = b"\n" if journal.read() not in (b"", b"\n") else b""
            journal.write(cut_short + json.dumps(entry).encode() + b"\n")  # a line this short is appended whole

    def journal(self) -> list[dict[str, Any]]:
        """All entries, in the order in which they were made, but those that a full disk or a kill has cut short."""
        entries = []
        with suppress(FileNotFoundError):
            for line in (self.root / JOURNAL).read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):
                    entries.append(json.loads(line))
        return entries

    def _at(self, kind: str, key: str, ending: str = "") -> Path | None:
        return next((path for path in self.root.glob(f"{kind}/*{key}{ending}")), None)

    def _lease_path(self, key: str) -> Path:
        return self.root / "leases" / f"{key}.json"

    def _failure_path(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"


def _file_name(labels: Mapping[str, Any], key: str) -> str:
    # A draft's name has the host's in it too, and file systems take 255 bytes.
    name = name_of(labels).encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{name}-{key}".removeprefix("-")
