"""The notebooks as they are kept; `make notebooks` runs them. Read as plain JSON, since nbformat comes with another extra."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lofit_lens

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
NAMES = (
    "01_lofit_in_ten_minutes.ipynb",
    "02_which_heads.ipynb",
    "03_head_transfer.ipynb",
    "04_offsets_next_to_iti.ipynb",
    "05_your_model_and_task.ipynb",
)
COLAB = "https://colab.research.google.com/github/lofit-lens/lofit-lens/blob/main/notebooks/"


def source_of(cell: dict[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def sources(name: str, kind: str) -> list[str]:
    return [source_of(cell) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == kind]


def tree_of(name: str) -> ast.Module:
    """The code of all cells as one module, without IPython's own lines."""
    lines = "\n".join(sources(name, "code")).split("\n")
    return ast.parse("\n".join(re.sub(r"^(\s*)%.*", r"\1pass", line) for line in lines))


def dotted(node: ast.AST) -> str | None:
    """`ll.plots.head_heatmap` of such an expression."""
    if isinstance(node, ast.Name):
        return node.id
    owner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{owner}.{node.attr}" if owner and isinstance(node, ast.Attribute) else None


def test_there_are_five_and_the_readme_names_each():
    assert tuple(NOTEBOOKS) == NAMES
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"(notebooks/{name})" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_nbformat(name):
    notebook = NOTEBOOKS[name]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"[a-z0-9-]{1,64}", i)] == []
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stripped(name):
    notebook = NOTEBOOKS[name]
    assert set(notebook["metadata"]) == {"kernelspec"}  # no widgets' state, no version of someone's Python
    assert [cell["id"] for cell in notebook["cells"] if cell["metadata"]] == []
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_has_a_title_and_a_badge_that_opens_this_notebook(name):
    first = sources(name, "markdown")[0]
    assert NOTEBOOKS[name]["cells"][0]["cell_type"] == "markdown"
    assert first.startswith("# ")
    assert re.findall(r"\]\((https://colab\.[^)]*\.ipynb)\)", first) == [COLAB + name]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_code_cell_installs_on_colab_only_and_has_the_switch(name):
    first, *others = sources(name, "code")
    assert 'if "google.colab" in sys.modules:\n    %pip install' in first
    assert 'FAST = os.environ.get("FAST", "1") == "1"' in first
    assert any(re.search(r"\bif FAST else\b", code) for code in others)


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_nothing_of_the_package_but_what_is_public(name):
    tree = tree_of(name)
    imported = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    assert [module for module in imported if str(module).startswith("lofit_lens")] == ["lofit_lens"]
    used = {path for node in ast.walk(tree) if (path := dotted(node)) and path.startswith("ll.")}
    assert "ll.load_model" in used
    for path in used:
        owner = lofit_lens
        for part in path.split(".")[1:]:
            public = getattr(owner, "__all__", None)
            assert public is None or part in public, path
            owner = getattr(owner, part)


def test_one_that_takes_more_than_four_minutes_fails():
    source = importlib.util.spec_from_file_location("notebooks_conftest", ROOT / "notebooks" / "conftest.py")
    limit = importlib.util.module_from_spec(source)
    source.loader.exec_module(limit)
    for seconds, outcome in ((239.0, "passed"), (241.0, "failed")):
        report = SimpleNamespace(outcome="passed", sections=[], longrepr=None)
        limit.judge(report, seconds)
        assert report.outcome == outcome
        assert report.sections == [("Time", f"{seconds:.0f} s of a processor")]
    assert report.longrepr == "took 241 s of a processor, more than 240; make what it runs smaller"


@pytest.mark.parametrize("name", NAMES)
def test_links_to_other_notebooks_lead_somewhere(name):
    links = [link for text in sources(name, "markdown") for link in re.findall(r"\]\(([^):]*\.ipynb)\)", text)]
    assert [link for link in links if link not in NAMES] == []
