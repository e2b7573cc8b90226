"""The rooms of the package: who may import whom, and how large a room may grow."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lofit_lens

ROOT = Path(lofit_lens.__file__).parent

#: Every module, lowest level first. A module imports from lower levels only.
LEVELS = (
    {"bfloat16", "files", "heads", "latex", "layout", "lens", "losses", "markdown", "plain", "plots.template", "progress"}
    | {"statistics", "tasks.base", "tiny", "vocabulary"},
    {"adapters", "batches", "caches", "checkpoints", "crossed", "embedded", "leases", "patching"}
    | {"tasks.sources", "tasks.world"},
    {"comparison", "outcomes", "packing", "tasks.data"},
    {"examination"},
    {"models", "tasks.clutrr", "tasks.counterfactual", "tasks.ioi", "tasks.kinship", "tasks.mquake", "tasks.own"}
    | {"tasks.open_domain", "tasks.reasoning", "tasks.text", "tasks.truth", "tasks.truthfulqa"},
    {"frozen", "interventions.base", "prefixes", "tasks"},
    {f"interventions.{kind}" for kind in ("heads", "lora", "low_rank", "prompt", "residual")},
    {"interventions"},
    {"activations", "displacements", "probes", "scoring"},
    {"generation", "objectives"},
    {"fitting"},
    {"evaluation", "harness", "methods.base", "side_effects"}
    | {"selection.gradient", "selection.layer_probes", "selection.orders"},
    {f"methods.{name}" for name in ("bitfit", "few_shot", "iti", "jola", "lofit", "lora", "loreft", "red", "repe")}
    | {"analysis.head_activations", "selection"},
    {"causal", "judging", "methods"}
    | {f"analysis.{result}" for result in ("attribution", "doses", "geometry", "head_transfers", "mixtures")}
    | {f"analysis.{result}" for result in ("overlap", "plane", "reading", "sweeps", "token_effects", "transfer")},
    {"analysis"}
    | {f"plots.{result}" for result in ("attribution", "doses", "geometry", "heads", "mixtures", "overlap", "reading")}
    | {f"plots.{result}" for result in ("head_transfers", "sweeps", "tokens", "transfer")},
    {"plots", "rendering", "results"},
    {"runs"},
    {"report.figures", "report.sources", "store", "study.settings", "tracking"},
    {"report.heads", "report.tables", "report.transfers", "study.grid"},
    {"report.page", "study.items"},
    {"report", "study.sources"},
    {"study.work"},
    {"study.leftovers", "study.local", "study.plan", "study.table"},
    {"study.head_transfers", "study.running"},
    {"study"},
    {"cluster"},
    {"lofit_lens", "demo", "recipes"},
    {"cli_study"},
    {"cli"},
    {"__main__"},
)

#: What only some may import: a library, and the modules (or whole rooms) that do.
GATES = {
    "transformer_lens": ("caches", "models", "patching"),
    "datasets": ("tasks",),
    "plotly": ("plots", "recipes", "rendering", "report"),
    "circuitsvis": ("plots", "report"),
    "jinja2": ("report",),
    "lm_eval": ("harness",),
    "peft": ("interventions.lora",),
    "ray": ("cluster",),
    "pickle": (),
}

#: Rooms that never look into another, whatever the levels say.
STRANGERS = {
    "analysis": ("methods", "study"),
    "plots": ("models",),
    "methods": ("evaluation",),
}

#: Modules of a room that its other modules share; otherwise siblings never import each other.
SHARED = {
    "tasks": ("tasks.base", "tasks.data", "tasks.sources", "tasks.world"),
    "interventions": ("interventions.base",),
    "methods": ("methods.base",),
    "selection": (),
    "analysis": ("analysis.head_activations",),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "lofit_lens"


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
MODULES = sorted(SOURCES)


def imports_of(module: str) -> Iterator[str]:
    """Full names of what a module imports, inside its functions too; `from a import b` gives `a.b` if that is a module."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; the package writes full names"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("lofit_lens.") in TREES else str(node.module)


def own_imports_of(module: str) -> set[str]:
    """The package's modules that a module imports."""
    names = {name for name in imports_of(module) if name.split(".")[0] == "lofit_lens"}
    return {name.removeprefix("lofit_lens.") for name in names}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def level_of(module: str) -> int:
    return next(level for level, modules in enumerate(LEVELS) if module in modules)


def test_imports_are_found_wherever_they_stand():
    assert {"lens", "heads", "models", "layout"} <= own_imports_of("interventions.heads")
    assert "lofit_lens" in own_imports_of("cli")
    # Inside a function.
    assert "transformer_lens" in {name.split(".")[0] for name in imports_of("caches")}


def test_every_module_has_one_level():
    listed = [module for modules in LEVELS for module in modules]
    assert sorted(listed) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_levels_only(module):
    own = level_of(module)
    assert {name: level_of(name) for name in own_imports_of(module) if level_of(name) >= own} == {}


@pytest.mark.parametrize("room", SHARED)
def test_siblings_never_import_each_other(room):
    siblings = {module for module in MODULES if module.startswith(room + ".")} - set(SHARED[room])
    assert siblings
    assert {module: siblings & own_imports_of(module) for module in siblings} == {module: set() for module in siblings}


def test_task_families_stand_on_nothing_but_the_shared_modules_of_their_room():
    families = {module for module in MODULES if module.startswith("tasks.") and module not in SHARED["tasks"]}
    assert {module: own_imports_of(module) - set(SHARED["tasks"]) for module in families} == {
        module: set() for module in families
    }


@pytest.mark.parametrize("library", GATES)
def test_a_library_is_imported_in_its_rooms_only(library):
    importers = {module for module in MODULES if library in {name.split(".")[0] for name in imports_of(module)}}
    assert {module for module in importers if not any(is_in(module, room) for room in GATES[library])} == set()


@pytest.mark.parametrize("room", STRANGERS)
def test_some_rooms_never_look_into_others(room):
    inside = [module for module in MODULES if is_in(module, room)]
    assert inside
    seen = {(module, name) for module in inside for name in own_imports_of(module)}
    assert {pair for pair in seen if any(is_in(pair[1], stranger) for stranger in STRANGERS[room])} == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_file_has_at_most_300_lines_and_a_function_60(module):
    n_lines = SOURCES[module].count("\n")
    assert n_lines <= 300
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


@pytest.mark.parametrize("module", MODULES)
def test_the_library_never_prints(module):
    calls = [node.func for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"] == []


def test_shapes_are_checked_at_run_time_wherever_they_are_written(request):
    checked = (request.config.getoption("--jaxtyping-packages") or "").split(",")
    written = {module for module in MODULES if "jaxtyping" in {name.split(".")[0] for name in imports_of(module)}}
    assert {module for module in written if f"lofit_lens.{module}" not in checked and "lofit_lens" not in checked} == set()
