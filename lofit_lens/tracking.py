"""Send what runs have found to Weights & Biases or Trackio, for those who want it there; the store has all of it anyway."""

import importlib
import logging
from pathlib import Path
from typing import Any, Literal, get_args

from lofit_lens.runs import read_losses, read_summary

logger = logging.getLogger(__name__)

Service = Literal["wandb", "trackio"]
SERVICES: tuple[Service, ...] = get_args(Service)


def checked_service(name: str | None) -> Service | None:
    """The service of that name, which must be installed.

    Raises:
        ValueError: there is no such service.
        ImportError: it is not installed.
    """
    if name is None:
        return None
    for service in SERVICES:
        if service == name:
            _module(service)
            return service
    raise ValueError(f"got the tracking service {name!r}, wanted one of {', '.join(SERVICES)}")


def send_run(folder: Path, service: Service, *, project: str) -> None:
    """Send a finished run: its labels and settings, the loss of every step, and what its evaluation found.

    The run is in its folder already: where the service cannot be reached, that is logged, and nothing is lost.
    """
    try:
        _send(folder, _module(service), project)
    except Exception as error:
        logger.error("%s was not sent to %s: %s", folder, service, error)


def _send(folder: Path, module: Any, project: str) -> None:
    summary = read_summary(folder)
    module.init(project=project, name=folder.name, config={**summary["labels"], "settings": summary["settings"]})
    try:
        for line in read_losses(folder):
            module.log({f"loss/{line['stage']}": line["loss"]})
        evaluation = summary["evaluation"]
        low, high = evaluation["interval"]
        module.log({evaluation["metric"]: evaluation["value"], "low": low, "high": high, "n": evaluation["n"]})
    finally:
        module.finish()


def _module(service: Service) -> Any:
    try:
        return importlib.import_module(service)
    except ModuleNotFoundError as error:
        raise ImportError(f"{service} is not installed: pip install {service}") from error
