"""Running a study: what its store lacks, here or on a cluster."""

import shutil
from collections.abc import Collection

import pandas as pd

from lofit_lens.checkpoints import UnusableStageError
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Study
from lofit_lens.study.items import Catalogue
from lofit_lens.study.local import run_here
from lofit_lens.study.table import study_table
from lofit_lens.study.work import Worker, state_of
from lofit_lens.tracking import Service


def run_study(
    study: Study,
    store: RunStore,
    *,
    accept_license: Collection[str] = (),
    device: str | None = None,
    n_devices: int = 1,
    track: Service | None = None,
) -> pd.DataFrame:
    """Do what the store lacks of a study, in this process; stopped or killed, it goes on where it was at the next call.

    Other processes may run the same study on the same store at the same time. What cannot be done is kept in the store with
    its error, and is left alone until `retry_study`; the rest goes on.

    Args:
        study: the grid.
        store: where results go.
        accept_license: licences that you accept, for models that ask (`{"gemma"}`).
        device: of the models; default is TransformerLens's choice.
        n_devices: split a model's layers over so many GPUs.
        track: also send finished runs to "wandb" or "trackio".

    Returns:
        `study_table`: one row for each cell that is done.

    Raises:
        ValueError: a model cannot be loaded; the other models' cells are done first.
        FileNotFoundError: a task's files are not at hand; before anything is run.
        OSError: the store cannot be written.
    """
    run_here(Worker(study, store, accept_license, device, n_devices, track))
    return study_table(study, store)


def retry_study(study: Study, store: RunStore) -> list[str]:
    """Forget what could not be done, so that the next `run_study` tries it again; the names of what failed.

    What was finished of a fit stays, unless that is what could not be used.
    """
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    forgotten = []
    for model in study.models:
        if model in catalogue.fingerprints:
            for item in catalogue.items(model):
                key = catalogue.key(item)
                if state_of(item, catalogue, store) == "failed":
                    failure = store.failure(key) or {}
                    if failure.get("error") == UnusableStageError.__name__:
                        shutil.rmtree(store.unfinished_folder(key), ignore_errors=True)
                    store.forget_failure(key)
                    forgotten.append(item.name)
    return forgotten
