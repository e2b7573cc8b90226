"""The table of what happens when one task borrows another's heads."""

import json

import pytest

from lofit_lens.analysis import TransferTable
from lofit_lens.outcomes import Evaluation


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


def test_the_records_are_one_for_each_cell_with_whose_heads_and_the_whole_evaluation():
    records = TABLE.to_json()
    assert [(record["heads_of"], record["task"], record["value"]) for record in records] == [
        ("truth", "kinship", 0.25),
        ("truth", "truth", 1.0),
        ("kinship", "kinship", 0.75),
        ("kinship", "truth", 0.5),
        ("random", "kinship", 0.0),
        ("random", "truth", 0.5),
    ]
    assert {"heads_of": "random", **TABLE.evaluations["random", "truth"].to_json()} == records[-1]


def test_a_table_survives_json():
    assert TransferTable.from_json(json.loads(json.dumps(TABLE.to_json(), allow_nan=False))) == TABLE


def test_a_missing_cell_is_named():
    table = TransferTable({}, sources=("truth",), targets=("kinship",))
    with pytest.raises((KeyError, ValueError), match=r"truth.*kinship"):
        table.to_frame()
