"""The study files below figures/: what they plan, that their settings are the paper's, and that they run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lofit_lens.heads import head_count
from lofit_lens.methods import ITI, RED, LoFiT, LoRA, RepE
from lofit_lens.store import RunStore
from lofit_lens.study import Cell, Study, plan, run_study
from lofit_lens.study.settings import Settings
from lofit_lens.tasks import (
    CLUTRR,
    SVAMP,
    ARCChallenge,
    BoolQ,
    Counterfactual,
    Kinship,
    MQuAKE,
    SocialIQA,
    Task,
    Truth,
    TruthfulQA,
    sources,
)

FIGURES = Path(__file__).parents[2] / "figures"
FILES = {str(path.relative_to(FIGURES)): path for path in FIGURES.rglob("*.toml")}
PAPER = {path.stem: path for name, path in FILES.items() if name.startswith("paper/")}

#: Cells, and head scores that they start from, of the small studies; fits have three seeds.
SMALL = {
    # At 3 % six tasks on own heads, five others', ITI's, and random ones of two kinds; at 10 % four on own and random ones.
    "transfer/study.toml": (6 + (6 * 9 + 4 * 2) * 3, 6 * 4 * 3),
    # Three tasks on own heads, two others', ITI's, random ones of three kinds, those of biases, of layers, of leaving one out
    # of a fit, which is one more, and of four gradients, which know no seed.
    "transfer-gemma/study.toml": (3 + 3 * 15 * 3, 3 * 8 * 3 + 3 * 4),
    # Two seeds. Kinship by five methods; Counterfactual by five, with LoFiT at five shares of heads, and by three at two other
    # sizes. Scores: LoFiT's at every size, ITI's at one.
    "methods-gemma/study.toml": (2 + (5 + 9 + 2 * 3) * 2, (2 + 4) * 2),
    # Six tasks on own heads in three ways, five others', ITI's, random ones of three kinds, those of three gradients, greedy
    # ones, those of biases, of layers, and of leaving one out of a fit, which is one more. Gradients know no seed.
    "choosers/study.toml": (6 + 6 * (3 + 5 + 1 + 3 + 3 + 4 + 1) * 3, 6 * (3 + 1 + 3 + 3) * 3 + 6 * 4),
}
#: The same of the paper's. TruthfulQA's two folds, MQuAKE and CLUTRR are four tasks; fits have two seeds.
PLANNED = {
    # The base model; ITI, RepE and LoFiT. Scores: ITI's and LoFiT's.
    **dict.fromkeys(("table1-gemma-7b", "table1-llama-2-7b", "table1-llama-2-13b"), (4 * (1 + 3 * 2), 4 * 2 * 2)),
    # Five ways to choose.
    **dict.fromkeys(("table2-gemma-7b", "table2-llama-2-7b", "table2-llama-2-13b"), (4 * (1 + 5 * 2), 4 * 5 * 2)),
    # Either fold: own heads, MQuAKE's, CLUTRR's, random. Either other task: own heads, both folds', the other's, random.
    **dict.fromkeys(("figure2-gemma-7b", "figure2-llama-2-7b", "figure2-llama-2-13b"), (4 + (2 * 4 + 2 * 5) * 2, 4 * 2 * 2)),
    # LoRA, RED, LoFiT; on Llama four tasks more, and half of RED there.
    "table3-gemma-7b": (4 * (1 + 3 * 2), 4 * 2),
    **dict.fromkeys(("table3-llama-2-7b", "table3-llama-2-13b"), (8 * (1 + 3 * 2) + 4 * 2, 8 * 2)),
    # LoRA, RED, LoFiT: MQuAKE at 20, 50 and 134, CLUTRR at six sizes.
    "figure4": (1 + 3 * 3 * 2 + 1 + 6 * 3 * 2, (3 + 6) * 2),
    # Five shares on MQuAKE and CLUTRR.
    **dict.fromkeys(("figure5-llama-2-7b", "figure5-llama-2-13b"), (2 * (1 + 5 * 2), 2 * 2)),
}

PRESETS = {"google/gemma-7b": "gemma-7b", "meta-llama/Llama-2-7b-hf": "llama2-7b", "meta-llama/Llama-2-13b-hf": "llama2-13b"}
N_HEADS = {"gemma-7b": 28 * 16, "llama2-7b": 32 * 32, "llama2-13b": 40 * 40}
PRESET_TASKS = {
    TruthfulQA: "truthfulqa",
    MQuAKE: "mquake",
    CLUTRR: "clutrr",
    SocialIQA: "siqa",
    ARCChallenge: "arc",
    BoolQ: "boolq",
    SVAMP: "svamp",
}
#: Table 7, where it is not 1e-3.
LORA_RATES = {
    ("llama2-7b", "truthfulqa"): 1e-4,
    ("llama2-7b", "boolq"): 5e-4,
    ("llama2-13b", "arc"): 8e-4,
    ("llama2-13b", "svamp"): 8e-4,
    ("llama2-13b", "boolq"): 1e-4,
}
RED_RATES = {
    ("gemma-7b", "clutrr"): 1e-4,
    ("llama2-7b", "truthfulqa"): 5e-4,
    ("llama2-7b", "clutrr"): 5e-3,
    ("llama2-7b", "arc"): 8e-4,
    ("llama2-7b", "boolq"): 5e-4,
    ("llama2-7b", "svamp"): 8e-4,
    ("llama2-13b", "svamp"): 8e-4,
}


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("LOFIT_LENS_DATA", raising=False)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", FILES)
def test_a_plan_needs_neither_model_nor_data_and_counts_what_there_is_to_run(name: str, tmp_path: Path) -> None:
    planned = plan(Study.from_file(FILES[name]), RunStore(tmp_path / "store"))
    kinds = planned.items["kind"].value_counts()
    assert (kinds["cell"], kinds["head scores"]) == (SMALL.get(name) or PLANNED[FILES[name].stem])
    assert planned.seconds > 0
    assert all("lofit-lens download" in note for note in planned.notes)


def test_every_file_is_counted() -> None:
    assert set(FILES) == {*SMALL, *(f"paper/{name}.toml" for name in PLANNED)}


def presets() -> Iterator[tuple[Study, Cell, Any, str, str]]:
    """Every cell of the paper's files that has a method: its study, itself, the method, and the paper's model and task."""
    for path in PAPER.values():
        study = Study.from_file(path)
        for cell in study.cells():
            if cell.method is not None:
                task = PRESET_TASKS[type(study.tasks[cell.task])]
                yield study, cell, study.method_at(cell), PRESETS[cell.model], task


def test_lofits_settings_and_counts_of_heads_are_those_of_table_6() -> None:
    seen = set()
    for _, cell, method, model, task in presets():
        counts = {LoFiT.from_paper(model, task, share=share).k: share for share in shares_of(task)}
        if isinstance(method, LoFiT) and cell.k in counts:
            assert replace(LoFiT.from_paper(model, task, share=counts[cell.k]), k=method.k) == method, cell
            seen.add((model, task, counts[cell.k]))
    assert len(seen) == 3 * 3 * 2 + 2 * 4


def shares_of(task: str) -> tuple[Any, ...]:
    return ("3%", "10%") if task in ("truthfulqa", "mquake", "clutrr") else ("10%",)


def test_shares_that_the_paper_has_no_count_for_are_figure_5s() -> None:
    shares = {(study.name, model, cell.k) for study, cell, _, model, _ in presets() if isinstance(cell.k, float)}
    assert {(name, head_count(k, N_HEADS[model])) for name, model, k in shares} == {
        *(("figure5-llama-2-7b", count) for count in (10, 205, 512)),
        *(("figure5-llama-2-13b", count) for count in (16, 320, 800)),
    }


def test_baselines_have_the_papers_settings() -> None:
    for _, cell, method, model, task in presets():
        reference = LoFiT.from_paper(model, task)
        if isinstance(method, LoRA | RED):
            assert (method.epochs, method.batch_size) == (reference.offset_epochs, reference.batch_size), cell
        if isinstance(method, LoRA):
            assert (method.rank, method.alpha, method.dropout) == (8, 8.0, 0.1)
            assert method.learning_rate == LORA_RATES.get((model, task), 1e-3), cell
        elif isinstance(method, RED):
            assert method.learning_rate == RED_RATES.get((model, task), 1e-3), cell
            assert method.layers == ("upper" if cell.method == "red-half" else "all")
        elif isinstance(method, RepE):
            assert (method.alpha, method.vector) == (5.0, "reading" if task == "truthfulqa" else "contrast"), cell
        elif isinstance(method, ITI):
            assert (method.alpha, method.direction, method.positions) == (15.0, "mass-mean", "published")


def test_only_llama_2_7b_is_run_in_float32() -> None:
    studies = map(Study.from_file, PAPER.values())
    assert {(*study.models, study.dtype) for study in studies} == {
        ("google/gemma-7b", "bfloat16"),
        ("meta-llama/Llama-2-7b-hf", "float32"),
        ("meta-llama/Llama-2-13b-hf", "bfloat16"),
    }


# Every file, run on a tiny model.

TINY_K = {0.01: 1, 16: 2, 32: 2, 48: 3, 96: 4, 160: 4, 0.2: 5, 0.5: 6}
TINY_N_TRAIN = {None: None, 20: 2, 50: 3, 100: 4, 134: 5, 300: 6, 500: 7, 1000: 8}
TINY_SIZES = {"n_train": 6, "n_val": 2, "n_test": 2}
TINY_TASKS = {
    "truthfulqa-0": Truth(seed=0, **TINY_SIZES),
    "truthfulqa-1": Truth(seed=1, **TINY_SIZES),
    "mquake": Counterfactual(**TINY_SIZES),
    "clutrr": Kinship(**TINY_SIZES),
    "social_iqa": Kinship(seed=1, **TINY_SIZES),
    "arc_challenge": Kinship(seed=2, **TINY_SIZES),
    "boolq": Counterfactual(seed=1, **TINY_SIZES),
    "svamp": Counterfactual(seed=2, **TINY_SIZES),
}


def tiny_method(settings: Settings) -> Settings:
    epochs = {name: 1 for name in ("epochs", "scale_epochs", "offset_epochs") if hasattr(settings.method, name)}
    wheres = [
        replace(where, k=TINY_K.get(where.k), set={**where.set, **{name: 1 for name in epochs if name in where.set}})
        for where in settings.where
    ]
    return replace(settings, method=replace(settings.method, **epochs), where=tuple(wheres))


def tiny(study: Study, family: str) -> Study:
    """The same grid on a tiny model, with one seed and little of everything."""
    return replace(
        study,
        models=(f"tiny-{family}",),
        tasks={name: TINY_TASKS[name] for name in study.tasks},
        methods={name: tiny_method(settings) for name, settings in study.methods.items()},
        k=tuple(TINY_K[k] for k in study.k),
        seeds=study.seeds[:1],
        n_train=tuple(TINY_N_TRAIN[n] for n in study.n_train),
        skip=tuple(replace(skip, n_train=TINY_N_TRAIN[skip.n_train]) for skip in study.skip),
    )


#: File -> cells with one seed, and how many of them the files above it have too.
LLAMAS = {
    "table1": (4 * (1 + 3), 0),
    "table2": (4 * (1 + 5), 4 * 2),  # the base model and LoFiT are Table 1's
    "figure2": (4 + 2 * 4 + 2 * 5, 4 * 3),  # and so they are here: the diagonal; random heads are Table 2's
    "table3": (8 * (1 + 3) + 4, 4),
    "figure5": (2 * (1 + 5), 2 * 3),  # its 3 % are Table 1's, its 10 % Table 3's
}
RUNS = {
    "llama-2-7b": {**LLAMAS, "figure4": (1 + 3 * 3 + 1 + 6 * 3, 2 + 3)},  # CLUTRR's 300 stories are Table 3's
    "llama-2-13b": LLAMAS,
    "gemma-7b": {name: LLAMAS[name] for name in ("table1", "table2", "figure2")} | {"table3": (4 * (1 + 3), 4)},
}


@pytest.mark.parametrize("model", RUNS)
def test_a_models_files_run_and_what_they_share_is_run_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Task, "max_new_tokens", 2)
    store = RunStore(tmp_path)
    for name, (n_cells, n_shared) in RUNS[model].items():
        path = PAPER.get(f"{name}-{model}") or PAPER[name]
        n_before = len(store.folders())
        study = tiny(Study.from_file(path), model.split("-")[0])
        table = run_study(study, store)
        cells = table[[*Cell.__dataclass_fields__]].drop_duplicates()
        assert (len(cells), n_cells - (len(store.folders()) - n_before)) == (n_cells, n_shared), name
        assert not any(store.root.glob("failures/*"))


def test_every_file_of_the_paper_is_run() -> None:
    assert {f"{name}-{model}" if name != "figure4" else name for model, runs in RUNS.items() for name in runs} == set(PAPER)
