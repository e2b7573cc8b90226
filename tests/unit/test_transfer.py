"""The table of what happens when one task borrows another's heads."""

import json

import pytest

from lofit_lens.analysis import TransferTable
from lofit_lens.evaluation import Evaluation


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


def test_the_frame_has_sources_as_rows_and_targets_as_columns():
    frame = TABLE.to_frame()
    assert (frame.index.name, list(frame.index)) == ("heads of", ["truth", "kinship", "random"])
    assert (frame.columns.name, list(frame.columns)) == ("task", ["kinship", "truth"])
    assert frame.to_numpy().tolist() == [[0.25, 1.0], [0.75, 0.5], [0.0, 0.5]]


def test_the_records_are_json_with_value_n_and_interval_of_each_cell():
    records = json.loads(json.dumps(TABLE.to_json(), allow_nan=False))
    assert [(r["heads_of"], r["task"], r["metric"], r["value"], r["n"]) for r in records] == [
        ("truth", "kinship", "exact_match", 0.25, 4),
        ("truth", "truth", "mc1", 1.0, 2),
        ("kinship", "kinship", "exact_match", 0.75, 4),
        ("kinship", "truth", "mc1", 0.5, 2),
        ("random", "kinship", "exact_match", 0.0, 4),
        ("random", "truth", "mc1", 0.5, 2),
    ]
    for record in records:
        cell = TABLE.evaluations[record["heads_of"], record["task"]]
        assert (record["low"], record["high"]) == cell.interval()


def test_a_missing_cell_is_named():
    table = TransferTable({}, sources=("truth",), targets=("kinship",))
    with pytest.raises((KeyError, ValueError), match=r"truth.*kinship"):
        table.to_frame()
