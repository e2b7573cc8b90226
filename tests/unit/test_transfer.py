"""The table of what happens when one task borrows another's heads, or is judged under another's adapter."""

import dataclasses

import pytest
import torch

import lofit_lens as ll
from lofit_lens.analysis import TransferTable, effects_on_tasks
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, PromptIntervention
from lofit_lens.outcomes import Evaluation
from lofit_lens.tasks import Example


def evaluation(task: str, metric: str, *scores: float) -> Evaluation:
    return Evaluation(task, "test", metric, {metric: scores})


TABLE = TransferTable(
    {
        ("kinship", "kinship"): evaluation("kinship", "exact_match", 1.0, 1.0, 0.0, 1.0),
        ("kinship", "truth"): evaluation("truth", "mc1", 1.0, 0.0),
        ("truth", "kinship"): evaluation("kinship", "exact_match", 0.0, 1.0, 0.0, 0.0),
        ("truth", "truth"): evaluation("truth", "mc1", 1.0, 1.0),
        ("random", "kinship"): evaluation("kinship", "exact_match", 0.0, 0.0, 0.0, 0.0),
        ("random", "truth"): evaluation("truth", "mc1", 0.0, 1.0),
    },
    sources=("truth", "kinship", "random"),
    targets=("kinship", "truth"),
)


def test_the_frame_has_a_row_for_each_cell_with_its_interval():
    frame = TABLE.to_frame()
    assert frame[["heads of", "task", "metric", "value", "n"]].to_numpy().tolist()[:3] == [
        ["truth", "kinship", "exact_match", 0.25, 4],
        ["truth", "truth", "mc1", 1.0, 2],
        ["kinship", "kinship", "exact_match", 0.75, 4],
    ]
    assert tuple(frame.loc[0, ["low", "high"]]) == TABLE.evaluations["truth", "kinship"].interval()
    assert len(frame) == 6


def test_the_matrix_has_sources_as_rows_and_targets_as_columns():
    frame = TABLE.matrix()
    assert (frame.index.name, list(frame.index)) == ("heads of", ["truth", "kinship", "random"])
    assert (frame.columns.name, list(frame.columns)) == ("task", ["kinship", "truth"])
    assert frame.to_numpy().tolist() == [[0.25, 1.0], [0.75, 0.5], [0.0, 0.5]]


def test_a_missing_cell_is_named():
    table = TransferTable({}, sources=("truth",), targets=("kinship",))
    with pytest.raises((KeyError, ValueError), match=r"truth.*kinship"):
        table.to_frame()


# Adapters on other tasks

EXAMPLES = [Example(f"Q: {i} and {i}? A:", f" {2 * i}", rejected=(f" {3 * i + 1}", " none", " who knows")) for i in range(8)]
EDITS = {
    "heads": HeadIntervention((Head(0, 1),), offset=torch.randn(1, 16, generator=torch.Generator().manual_seed(0))),
    "shots": PromptIntervention("Q: 1 and 1? A: 2\n"),
}


@pytest.fixture
def tasks(toy_task):
    likely, spoken = toy_task({"test": EXAMPLES, "val": EXAMPLES[:3]}, metric="mc1"), toy_task({"test": EXAMPLES[6:]})
    return {"by likelihood": likely, "generated": spoken}


def test_every_effect_is_what_a_call_of_its_own_gives(model, tasks):
    table = effects_on_tasks(model, EDITS, tasks)
    assert (table.rows, table.sources, table.targets) == ("adapter", ("base", "heads", "shots"), ("by likelihood", "generated"))
    for source, edit in {"base": None, **EDITS}.items():
        for target, task in tasks.items():
            alone = ll.evaluate(model, task, edit)
            assert table.evaluations[source, target] == dataclasses.replace(alone, task=target)
    assert len({table.evaluations[source, "by likelihood"].scores["margin"] for source in table.sources}) == 3


def test_split_and_token_budget_of_effects_reach_the_evaluation(llama, tasks, passes):
    table = effects_on_tasks(llama, {}, {"toy": tasks["by likelihood"]}, split="val")
    assert table.evaluations == {("base", "toy"): ll.evaluate(llama, tasks["by likelihood"], split="val")}
    passes.clear()
    effects_on_tasks(llama, {}, tasks)
    whole = len(passes)
    effects_on_tasks(llama, {}, tasks, token_budget=16)
    assert len(passes) - whole > whole


def test_effects_say_that_their_rows_are_adapters(llama, tasks):
    table = effects_on_tasks(llama, EDITS, tasks)
    assert table.matrix().index.name == "adapter"
    assert list(table.matrix().index) == ["base", "heads", "shots"]


@pytest.mark.usefixtures("as_users_run_it")
def test_effects_that_cannot_be_measured_are_refused_before_anything_is_run(llama, tasks, passes):
    with pytest.raises(ValueError, match=r"got the tasks \[\]"):
        effects_on_tasks(llama, EDITS, {})
    with pytest.raises(ValueError, match="no edit named 'base', which is the model itself"):
        effects_on_tasks(llama, {"base": EDITS["heads"]}, tasks)
    with pytest.raises(ValueError, match="L9H9 is out of range"):
        effects_on_tasks(llama, {**EDITS, "misfit": HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16))}, tasks)
    with pytest.raises(ValueError, match="the val split of task 'toy' is empty"):
        effects_on_tasks(llama, EDITS, tasks, split="val")
    assert passes == []
