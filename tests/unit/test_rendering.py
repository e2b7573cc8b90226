"""Figures as files: a page that works offline, images by a real browser, and the numbers beside them."""

import json
import re
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from lofit_lens import HeadScores, save_figure, save_figures, save_images
from lofit_lens.plots import TokenView, head_heatmap
from lofit_lens.plots.template import TEMPLATE

FIGURE = go.Figure(go.Scatter(x=[1, 2], y=[3, 5], name="line"))
FIGURE.update_layout(template=TEMPLATE, width=500, height=300, title_text="A figure")
FRAME = pd.DataFrame({"head": ["L0H1", "L2H0"], "score": [0.5, 0.25]})


def endings(paths: list[Path]) -> list[str]:
    return [path.name.removeprefix("heads") for path in paths]


def test_a_page_stands_alone_and_the_numbers_are_beside_it(tmp_path):
    written = save_figure(FIGURE, tmp_path / "new folder" / "heads", FRAME, images=())
    assert endings(written) == [".html", ".csv"]
    page = written[0].read_text(encoding="utf-8")
    assert "A figure" in page
    assert len(page) > 3_000_000  # plotly.js itself
    assert "<script src=" not in page
    pd.testing.assert_frame_equal(pd.read_csv(written[1]), FRAME)
    small, numbers = save_figure(FIGURE, tmp_path / "heads", {"k": [1, 2]}, images=(), offline=False)
    assert small.stat().st_size < 100_000
    assert json.loads(numbers.read_text()) == {"k": [1, 2]}


def test_a_name_may_have_a_dot(tmp_path):
    (page,) = save_figure(FIGURE, tmp_path / "alpha-0.5", images=(), offline=False)
    assert page.name == "alpha-0.5.html"


def test_what_needs_a_browser_is_skipped_on_a_machine_without_one_and_fails_in_ci(unavailable, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        unavailable("no Chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        unavailable("no Chromium")


@pytest.mark.usefixtures("chromium")
def test_a_real_browser_draws_the_images(tmp_path):
    figure = head_heatmap(HeadScores(torch.rand(3, 4)), title="A figure", columns=1)
    written = save_figure(figure, tmp_path / "heads", offline=False)
    assert endings(written) == [".html", ".png", ".svg", ".pdf"]
    png, svg, pdf = (path.read_bytes() for path in written[1:])
    assert png.startswith(b"\x89PNG")
    # Three pixels for each of the 312 of a column's width (bytes 16 to 19).
    assert int.from_bytes(png[16:20], "big") == 3 * 312
    assert svg.startswith(b"<svg")
    assert b"A figure" in svg
    assert b'width="312"' in svg
    # In points, 72 an inch: 3.25 inches.
    assert pdf.startswith(b"%PDF")
    [box] = re.findall(rb"/MediaBox \[([^]]*)\]", pdf)
    assert float(box.split()[2]) == pytest.approx(234, abs=0.5)


@pytest.mark.usefixtures("chromium")
def test_several_figures_are_those_that_are_drawn_one_by_one(tmp_path):
    other = go.Figure(FIGURE).update_layout(width=300, height=200)
    written = save_figures({tmp_path / "a": FIGURE, tmp_path / "b": other}, images=("svg",), offline=False)
    assert [path.name for path in written] == ["a.html", "b.html", "a.svg", "b.svg"]
    for name, figure in (("a", FIGURE), ("b", other)):
        alone = save_figure(figure, tmp_path / "alone" / name, images=("svg",), offline=False)
        assert [path.name for path in alone] == [f"{name}.html", f"{name}.svg"]
        assert alone[0].read_text() == (tmp_path / f"{name}.html").read_text()
        assert _without_ids(alone[1]) == _without_ids(tmp_path / f"{name}.svg")


@pytest.mark.usefixtures("chromium")
def test_images_alone_are_written_without_pages(tmp_path):
    written = save_images({tmp_path / "new" / "a": FIGURE, tmp_path / "new" / "b": TokenView("")}, ("svg",))
    assert [path.name for path in written] == ["a.svg"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.svg"]


def _without_ids(svg: Path) -> str:
    """What plotly numbers at random."""
    return re.sub(r'trace[0-9a-f]{6}|id="[^"]*"|#[^"\)]*', "", svg.read_text())


def test_without_a_browser_the_rest_is_written_and_a_message_says_what_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no browser"))
    written = save_figure(FIGURE, tmp_path / "heads", FRAME, offline=False)
    assert endings(written) == [".html", ".csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.csv", "heads.html"]
    assert "no images are drawn" in caplog.text
    assert "pip install 'lofit-lens[figures]' and a Chrome or Chromium" in caplog.text


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got the images \['gif'\]"):
        save_figure(FIGURE, tmp_path / "heads", images=("gif",))
    with pytest.raises(ValueError, match=r"wanted a path without \.html"):
        save_figure(FIGURE, tmp_path / "heads.html")
    assert list(tmp_path.iterdir()) == []
