"""What a store holds that a study does not need, or not any more."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lofit_lens.files import is_litter
from lofit_lens.store import RunStore
from lofit_lens.study.grid import Study
from lofit_lens.study.items import Catalogue
from lofit_lens.study.work import state_of


@dataclass(frozen=True)
class Leftover:
    """Something that can go.

    Args:
        path: a file or folder.
        why: nobody needs it.
        size: in bytes.
    """

    path: Path
    why: str
    size: int

    def remove(self) -> None:
        """Remove it; whatever needs it again makes it again."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def leftovers(study: Study, store: RunStore, *, of_others: bool = False) -> list[Leftover]:
    """What can go: half-done work, leases and failures of what is done, drafts of killed processes of this host; activations
    too, once all is done and nobody works at anything in the store.

    Args:
        study: the grid.
        store: what nobody works at now is looked at.
        of_others: also failures and half-done work that this study has nothing to do with, and runs and head scores once nobody
            works at anything in the store.
    """
    catalogue = Catalogue(study, store.fingerprints(study.dtype))
    items = [item for model in study.models if model in catalogue.fingerprints for item in catalogue.items(model)]
    states = {catalogue.key(item): state_of(item, catalogue, store) for item in items}
    is_at_rest = not any(store.is_leased(path.stem) for path in store.root.glob("leases/[!.]*.json"))
    found: list[tuple[Path, str]] = list(_half_done(store, states, of_others=of_others))
    if is_at_rest and set(states.values()) == {"done"}:
        folders = (store.activations_folder, store.residuals_folder)
        found += [(path, "finished") for folder in folders for path in folder.glob("[!.]*")]
    if of_others and is_at_rest:
        stored = [*store.root.glob("runs/[!.]*"), *store.root.glob("scores/[!.]*")]
        found += [(path, "not of this study") for path in stored if path.name.removesuffix(".json")[-16:] not in states]
    found += [(path, "left by a killed process") for path in store.root.glob("*/.*.tmp") if is_litter(path)]
    return [Leftover(path, why, _size(path)) for path, why in found]


def _half_done(store: RunStore, states: dict[str, str], *, of_others: bool) -> Iterator[tuple[Path, str]]:
    kinds = ("unfinished/*", "leases/[!.]*.json", "failures/[!.]*.json")
    for path in sorted(path for kind in kinds for path in store.root.glob(kind)):
        key = path.stem
        if store.is_leased(key):
            continue
        if states.get(key) == "done":
            yield path, "finished"
        elif key not in states and of_others:
            yield path, "not of this study"


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
