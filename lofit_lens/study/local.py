"""Running a study in this process; others may run the same study on the same store beside it."""

import logging
import time
from collections.abc import Callable

from lofit_lens.progress import progress
from lofit_lens.study.items import Catalogue, Item
from lofit_lens.study.work import Worker, deaths, first_to_do, state_of

logger = logging.getLogger(__name__)

#: Seconds between two looks at what others are doing, when all that is left is theirs.
PATIENCE = 1.0


def run_here(worker: Worker) -> None:
    """Do what the store lacks, one item after the other, model by model.

    Raises:
        FileNotFoundError: a task's files are not at hand; before anything is run.
        ValueError: a model cannot be loaded; the other models' items are done first.
        OSError: the store cannot be written.
    """
    worker.study.check_data()
    refused: dict[str, Exception] = {}
    for model in worker.study.models:
        try:
            _run_model(worker, model, worker.catalogue(model))
        except ValueError as error:
            logger.error("%s is left out: %s", model, error)
            refused[model] = error
    if refused:
        raise ValueError("; ".join(f"{model} was left out: {error}" for model, error in refused.items()))


def _run_model(worker: Worker, model: str, catalogue: Catalogue) -> None:
    left = catalogue.items(model)
    with progress(None, f"{worker.study.name}: {model}", total=len(left)) as bar:
        while left:
            had = len(left)
            left = _passed_over(left, worker, catalogue, bar.update)
            if len(left) == had:
                time.sleep(PATIENCE)


def _passed_over(items: list[Item], worker: Worker, catalogue: Catalogue, advance: Callable[[float], object]) -> list[Item]:
    """Go once through the items, those at which a process has died before last; what is left."""
    left = []
    for item in sorted(items, key=lambda item: deaths(worker.store.unfinished_folder(catalogue.key(item)))):
        state = state_of(item, catalogue, worker.store)
        if state == "waiting":  # and behind what it waits for, which has been asked for again since, or is somebody else's
            worker.attempt(first_to_do(item, catalogue, worker.store), catalogue)
        if state == "done":
            worker.store.clear_up(catalogue.key(item))
        if state == "waiting" or (state == "to do" and not worker.attempt(item, catalogue)):
            left.append(item)
            continue
        advance(1)
    return left
