"""Keep a figure: one HTML file that works offline, images for a paper, and the numbers behind it beside them.

Images need the extra `lofit-lens[figures]` (kaleido) and a Chrome or Chromium, which draws them.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import plotly.io

from lofit_lens.files import new_file, write_json_atomically, write_text_atomically
from lofit_lens.plots.tokens import TokenView

logger = logging.getLogger(__name__)

ImageFormat = Literal["png", "svg", "pdf"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("png", "svg", "pdf")
#: Pixels for each of those in a PNG: about 300 dots an inch.
_PNG_SCALE = 3


def save_figure(
    figure: go.Figure | TokenView,
    path: str | Path,
    data: pd.DataFrame | Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    images: Sequence[ImageFormat] = IMAGE_FORMATS,
    offline: bool = True,
) -> list[Path]:
    """Write `path` with the endings .html, .csv or .json, and those of the images; each whole or not at all.

    Args:
        figure: what is kept. A `TokenView` is a page, and has no images.
        path: without an ending; its folder is made.
        data: the numbers behind the figure: a table becomes CSV, everything else JSON. None writes none, as where `save_result`
            keeps the whole result.
        images: which of `png`, `svg` and `pdf`. Where they cannot be drawn, a warning says what is missing.
        offline: the HTML file holds plotly.js itself (5 MB); otherwise it is fetched from a public server when it is opened.

    Returns:
        The files that were written.

    Raises:
        ValueError: another kind of image, or a path with an ending of its own.
        OSError: the folder cannot be written.
    """
    written = save_figures({Path(path): figure}, images=images, offline=offline)
    if isinstance(data, pd.DataFrame):
        written.append(_with_ending(Path(path), "csv"))
        write_text_atomically(written[-1], data.to_csv(index=False))
    elif data is not None:
        written.append(_with_ending(Path(path), "json"))
        write_json_atomically(written[-1], data)
    return written


def save_figures(
    figures: Mapping[Path, go.Figure | TokenView],
    *,
    images: Sequence[ImageFormat] = IMAGE_FORMATS,
    offline: bool = True,
) -> list[Path]:
    """`save_figure` of several, for which the browser starts only once.

    Args:
        figures: by the path of each, without an ending.
        images: as in `save_figure`.
        offline: as in `save_figure`.

    Returns:
        The files that were written.

    Raises:
        ValueError, OSError: as `save_figure`.
    """
    kinds = checked_images(images)
    if ending := [path for path in figures if path.suffix[1:] in ("html", "json", "csv", *IMAGE_FORMATS)]:
        raise ValueError(f"got {ending[0]}, wanted a path without {ending[0].suffix}: several files are written")
    return [_save_page(path, figure, offline=offline) for path, figure in figures.items()] + save_images(figures, kinds)


def save_images(figures: Mapping[Path, go.Figure | TokenView], images: Sequence[ImageFormat] = IMAGE_FORMATS) -> list[Path]:
    """`save_figures` without the pages: what a paper needs of figures that are laid out for it (`columns=` of a plot).

    Returns:
        The files that were written.

    Raises:
        ValueError: another kind of image.
        OSError: the folder cannot be written.
    """
    kinds = checked_images(images)
    drawn = {path: figure for path, figure in figures.items() if not isinstance(figure, TokenView)}
    return _images(drawn, kinds) if kinds and drawn else []


def checked_images(kinds: Sequence[str]) -> list[ImageFormat]:
    """The kinds of images, each of which must be one that can be drawn.

    Raises:
        ValueError: says which is not.
    """
    if unknown := [kind for kind in kinds if kind not in IMAGE_FORMATS]:
        raise ValueError(f"got the images {unknown}, wanted some of {list(IMAGE_FORMATS)}")
    return [kind for kind in IMAGE_FORMATS if kind in kinds]


def _save_page(path: Path, figure: go.Figure | TokenView, *, offline: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _with_ending(path, "html")
    # The page's only figure, under a name that does not change with every drawing.
    options: Any = {"include_plotlyjs": True if offline else "cdn", "div_id": path.name}
    write_text_atomically(page, figure.to_html() if isinstance(figure, TokenView) else figure.to_html(**options))
    return page


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _images(figures: Mapping[Path, go.Figure], kinds: Sequence[ImageFormat]) -> list[Path]:
    wanted = [(path, figure, kind) for path, figure in figures.items() for kind in kinds]
    targets = [_with_ending(path, kind) for path, _, kind in wanted]
    layouts: list[Any] = [figure.layout for _, figure, _ in wanted]
    try:
        with contextlib.ExitStack() as stack:
            scratch = [stack.enter_context(new_file(target)) for target in targets]
            # All at once, as each call starts a browser of its own. It does not ask a figure for its size.
            plotly.io.write_images(
                [figure for _, figure, _ in wanted],
                list(scratch),
                [kind for _, _, kind in wanted],
                [_PNG_SCALE if kind == "png" else 1 for _, _, kind in wanted],
                width=[layout.width for layout in layouts],
                height=[layout.height for layout in layouts],
            )
    except (RuntimeError, ValueError, ImportError) as error:
        # What kaleido says of a missing Chrome takes many lines, the first of which says it.
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        names = ", ".join(map(str, figures))
        logger.warning(
            "%s: no images are drawn (%s); they need pip install 'lofit-lens[figures]' and a Chrome or Chromium", names, reason
        )
        return []
    return targets
