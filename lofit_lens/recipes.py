"""Figures that can be made again: from the numbers beside them in seconds, or from the model.

A figure folder `NAME/` below a root (`figures/` in a checkout) has

    recipe.py     what is shown, in its docstring; `compute()` yields (name, result) pairs, `draw(results, columns)` gives the
                  figures, laid out for so many columns of a paper, or for a screen (None)
    data/         those results, as `save_result` writes them
    *.html, ...   the figures: pages for a screen, and images for a paper

`recipe.py` is imported and run: use the folders that you trust. It may import what is beside it below the root.
"""

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from lofit_lens.plots import TokenView
from lofit_lens.plots.template import Columns
from lofit_lens.rendering import ImageFormat, checked_images, save_figures, save_images
from lofit_lens.results import Result, load_result, save_result

logger = logging.getLogger(__name__)

FILE = "recipe.py"
DATA = "data"


@dataclass(frozen=True)
class Recipe:
    """How the figures of one folder are made.

    Args:
        folder: where they are.
        summary: what is shown, in a line.
        compute: the slow part; yields each result with its name as soon as it is there.
        draw: figures by name, of the results by name, for columns of a paper or a screen.
    """

    folder: Path
    summary: str
    compute: Callable[[], Iterable[tuple[str, Result]]]
    draw: Callable[[Mapping[str, Result], Columns | None], Mapping[str, go.Figure | TokenView]]

    def rerun(self) -> None:
        """Compute everything anew; each result is kept as soon as it is there.

        Raises:
            ValueError: no results, or one name twice.
        """
        names: list[str] = []
        for name, result in self.compute():
            if name in names:
                raise ValueError(f"{self.folder / FILE} gave {name!r} twice; wanted a name for each result")
            names.append(name)
            logger.info("%s", save_result(result, self._data_file(name)))
        if not names:
            raise ValueError(f"{self.folder / FILE} computed no results; wanted at least one")
        for path in self._data_files():
            if path.stem not in names:
                path.unlink()

    def render(self, *, images: Sequence[ImageFormat] = ("png",), columns: Columns = 1) -> list[Path]:
        """Draw the figures from the results that are kept: a page of each for a screen, and images for a paper.

        Pages take plotly.js from a public server, to stay small.

        Args:
            images: which.
            columns: of a paper that the images are as wide as.

        Returns:
            The files that were written.

        Raises:
            FileNotFoundError: nothing is kept.
            ValueError: a result that cannot be read, another kind of image or number of columns.
        """
        kinds = checked_images(images)
        results = {path.stem: load_result(path) for path in self._data_files()}
        if not results:
            raise FileNotFoundError(
                f"there are no results in {self.folder / DATA}; compute them with lofit-lens figures {self.folder.name} --rerun"
            )
        in_paper = {self.folder / name: figure for name, figure in self.draw(results, columns).items()}
        on_screen = {self.folder / name: figure for name, figure in self.draw(results, None).items()}
        return save_figures(on_screen, images=(), offline=False) + save_images(in_paper, kinds)

    def _data_file(self, name: str) -> Path:
        return self.folder / DATA / f"{name}.json"

    def _data_files(self) -> list[Path]:
        return sorted((self.folder / DATA).glob("*.json"))


def find_recipes(root: str | Path, names: Sequence[str] = ()) -> list[Recipe]:
    """The figure folders below a root.

    Args:
        root: such as `figures`.
        names: of folders, in order; none is all of them.

    Raises:
        FileNotFoundError: there are no figure folders.
        ValueError: no such folder, or its recipe lacks `compute`, `draw` or a docstring.
    """
    root = Path(root).resolve()
    known = sorted(path.parent.name for path in root.glob(f"*/{FILE}"))
    if not known:
        raise FileNotFoundError(f"{root} has no figure folders (NAME/{FILE}); name their root with --folder")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"got {unknown}; wanted some of {', '.join(known)}, the figure folders in {root}")
    with _importable(root.parent):
        return [_read(root, name) for name in names or known]


def _read(root: Path, name: str) -> Recipe:
    module = importlib.import_module(f"{root.name}.{name}.{Path(FILE).stem}")
    compute, draw, doc = getattr(module, "compute", None), getattr(module, "draw", None), inspect.getdoc(module)
    if compute is None or draw is None or not doc:
        raise ValueError(f"{root / name / FILE} lacks one of compute(), draw(results, columns) and a docstring")
    return Recipe(root / name, doc.splitlines()[0], compute, draw)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
