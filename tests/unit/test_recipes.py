"""Figure folders: computed once, drawn from what was kept; and the folders of this project, drawn from theirs."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import lofit_lens as ll
from lofit_lens import cli
from lofit_lens.recipes import find_recipes

FIGURES = Path(ll.__file__).parents[1] / "figures"

RECIPE = '''"""Two maps of made-up scores.

More words.
"""

import torch
from {root}.shared import SCALE
from lofit_lens import HeadScores, plots

RUNS = []


def compute():
    RUNS.append(1)
    for name in ("a", "b"):
        yield name, HeadScores(SCALE * torch.ones(2, 2), "score of " + name)


def draw(results, columns):
    return {{name: plots.head_heatmap(found, title=name, columns=columns) for name, found in results.items()}}
'''


@pytest.fixture
def root(tmp_path, request):
    """A root with one figure folder, under a name of its own: modules are remembered by their names."""
    root = tmp_path / f"root_{abs(hash(request.node.name))}"
    (root / "maps").mkdir(parents=True)
    (root / "shared.py").write_text("SCALE = 3.0\n")
    (root / "maps" / "recipe.py").write_text(RECIPE.format(root=root.name))
    return root


def test_what_is_computed_is_kept_and_drawn(root):
    [recipe] = find_recipes(root)
    assert recipe.summary == "Two maps of made-up scores."
    (root / "maps" / "data").mkdir()
    (root / "maps" / "data" / "old.json").write_text("{}")
    recipe.rerun()
    assert sorted(path.name for path in (root / "maps" / "data").iterdir()) == ["a.json", "b.json"]
    assert ll.load_result(root / "maps" / "data" / "a.json", ll.HeadScores).values.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    written = recipe.render(images=())
    assert written == [root / "maps" / "a.html", root / "maps" / "b.html"]
    assert '"text":"a"' in written[0].read_text()


def test_drawing_computes_nothing(root, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lofit-lens", "figures", "--folder", str(root), "--images", "png"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "there are no results in" in capsys.readouterr().err
    [recipe] = find_recipes(root)
    recipe.rerun()
    recipe.render(images=())
    assert sys.modules[f"{root.name}.maps.recipe"].RUNS == [1]


def test_the_command_computes_and_draws(root, capsys, monkeypatch):
    command = ["lofit-lens", "figures", "maps", "--folder", str(root), "--rerun", "--images", "svg"]
    monkeypatch.setattr(sys, "argv", [*command, "--images", "bmp"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "got the images ['bmp'], wanted some of ['png', 'svg', 'pdf']" in capsys.readouterr().err
    assert not (root / "maps" / "data").exists()
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "maps: Two maps of made-up scores." in capsys.readouterr().out
    drawn = {path.name for path in (root / "maps").iterdir()}
    assert {"a.html", "b.html"} <= drawn
    assert not {"a.png", "a.pdf"} & drawn


@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="no Chrome or Chromium here")
@pytest.mark.parametrize(("options", "width"), [([], 312), (["--columns", "2"], 648)])
def test_images_are_for_the_columns_of_a_paper_and_pages_for_a_screen(root, monkeypatch, options, width):
    [recipe] = find_recipes(root)
    recipe.rerun()
    monkeypatch.setattr(sys, "argv", ["lofit-lens", "figures", "--folder", str(root), "--images", "svg", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert f'width="{width}"' in (root / "maps" / "a.svg").read_text()
    assert '"width":420' in (root / "maps" / "a.html").read_text()


def test_images_that_are_no_images_are_refused_before_anything_is_drawn(root):
    [recipe] = find_recipes(root)
    recipe.rerun()
    with pytest.raises(ValueError, match=r"got the images \['gif'\]"):
        recipe.render(images=("gif",))
    assert not (root / "maps" / "a.html").exists()


def test_nothing_that_was_computed_is_lost_if_the_rest_fails(root):
    recipe_file = root / "maps" / "recipe.py"
    recipe_file.write_text(recipe_file.read_text().replace('("a", "b")', '("a", "a")'))
    [recipe] = find_recipes(root)
    with pytest.raises(ValueError, match="gave 'a' twice"):
        recipe.rerun()
    assert [path.name for path in (root / "maps" / "data").iterdir()] == ["a.json"]


def test_folders_that_cannot_be_used_are_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"got \['map'\]; wanted some of maps, the figure folders in "):
        find_recipes(root, ["map"])
    with pytest.raises(FileNotFoundError, match="has no figure folders"):
        find_recipes(tmp_path / "nowhere")
    (root / "broken").mkdir()
    (root / "broken" / "recipe.py").write_text("def compute(): return []\n")
    with pytest.raises(ValueError, match=r"recipe.py lacks one of compute\(\), draw\(results, columns\) and a docstring"):
        find_recipes(root, ["broken"])
    (root / "broken" / "recipe.py").write_text(
        '"""Nothing."""\ndef compute(): return []\ndef draw(results, columns): return {}\n'
    )
    sys.modules.pop(f"{root.name}.broken.recipe")
    [recipe] = find_recipes(root, ["broken"])
    with pytest.raises(ValueError, match="computed no results"):
        recipe.rerun()
    assert str(root.parent) not in sys.path


@pytest.mark.parametrize("recipe", find_recipes(FIGURES), ids=lambda recipe: recipe.folder.name)
def test_the_figures_of_this_project_are_drawn_from_their_data(recipe):
    results = {path.stem: ll.load_result(path) for path in (recipe.folder / "data").glob("*.json")}
    figures = recipe.draw(results, None)
    assert figures
    for name, figure in figures.items():
        page = (recipe.folder / f"{name}.html").read_text()
        if isinstance(figure, ll.plots.TokenView):
            assert _without_ids(page) == _without_ids(figure.to_html()), f"{name} was drawn of other data: make figures"
        else:
            drawn = json.dumps(json.loads(figure.to_json())["data"], sort_keys=True)
            assert _data_of(page) == drawn, f"{name} was drawn of other data: make figures"


def _without_ids(page: str) -> str:
    return re.sub("circuits-vis-[0-9a-f-]+", "", page)


def _data_of(page: str) -> str:
    """The traces in a page that plotly wrote."""
    start = page.index("Plotly.newPlot(")
    traces = page.index("[", start)
    found, _ = json.JSONDecoder().raw_decode(page[traces:])
    return json.dumps(found, sort_keys=True)
