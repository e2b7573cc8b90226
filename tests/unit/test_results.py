"""Every kind of result is written to a file and read back equal; what cannot be read is refused and named."""

import dataclasses
import json
import math

import pandas as pd
import pytest
import torch
from torch import Tensor

import lofit_lens as ll
from lofit_lens import results
from lofit_lens.analysis import (
    AttentionPatterns,
    DoseResponse,
    Mixture,
    OffsetAttribution,
    OffsetGeometry,
    OffsetPlane,
    OffsetReading,
    Sweep,
    TokenEffects,
    TransferTable,
    head_overlap,
    head_transfer,
)
from lofit_lens.analysis.reading import ReadToken
from lofit_lens.heads import Head, HeadScores
from lofit_lens.outcomes import Evaluation
from lofit_lens.probes import LabelledAnswers
from lofit_lens.side_effects import SideEffects

HEADS = (Head(0, 1), Head(2, 0))
SCORES = HeadScores(torch.tensor([[0.1, 2.0], [math.nan, math.nan]]), "a norm", {"method": "LoFiT", "k": 0.1})
JUDGED = Evaluation("truth", "test", "mc1", {"mc1": (1.0, 0.0), "mc2": (0.3, 0.1)}, ("Paris", "</script>"), 1, {"n_test": 2})
COSTS = SideEffects((2.0, 2.5), (1.0, 2.0), (0.1, 0.2), (5, 7))
LABELLED = LabelledAnswers(("Q: a", "Q: a"), (" b", " c"), (True, False), (0, 0), ("test 0", "test 0"))
THIRDS = torch.arange(6, dtype=torch.float64).view(2, 3) / 3

EXAMPLES = [
    SCORES,
    dataclasses.replace(SCORES, is_signed=True, base_model={"name": "tiny", "n_heads": 2}, n_key_value_heads=1),
    JUDGED,
    COSTS,
    AttentionPatterns(("a", "b"), HEADS, torch.rand(2, 2, 2), torch.rand(2, 2, 2)),
    DoseResponse((0.0, 1.0), (JUDGED, JUDGED), (COSTS, COSTS)),
    DoseResponse((1.0,), (JUDGED,)),
    head_overlap({"a": [SCORES, SCORES], "b": [SCORES]}, 1, n_draws=20),
    head_transfer({("truth", "truth"): {0: JUDGED}, ("random", "truth"): {0: JUDGED}}, ("truth", "random"), ("truth",)),
    Mixture(((0.0, 1.0), (0.5, 0.5)), ("truth",), {((0.0, 1.0), "truth"): JUDGED, ((0.5, 0.5), "truth"): JUDGED}),
    OffsetAttribution(HEADS, torch.rand(2, 4), "vocabulary"),
    OffsetGeometry(
        HEADS,
        ("probe", "random"),
        torch.tensor([math.nan, -0.1, 0.25, 1.0] * 3).view(3, 2, 2),
        64,
        torch.rand(2),
        torch.tensor([1.0, math.nan]),
        torch.rand(2),
    ),
    OffsetPlane(Head(2, 0), "probe", 15.0, LABELLED, torch.rand(2, 2), torch.rand(2), torch.rand(2), 0.5),
    OffsetReading((ReadToken(Head(0, 1), "with norm", "top", 1, " Paris", 3.5, 0.25),)),
    Sweep("heads", {0.1: (JUDGED, JUDGED), 1.0: (JUDGED,)}),
    TokenEffects(("a", "<b"), torch.tensor([-1.0]), torch.tensor([-0.1]), torch.tensor([0.2])),
    TransferTable({("base", "truth"): JUDGED}, ("base",), ("truth",), "adapter"),
]


def test_scores_that_an_older_version_has_written_are_read(tmp_path):
    path = ll.save_result(SCORES, tmp_path / "scores.json")
    stored = json.loads(path.read_text())
    for later in ("is_signed", "base_model", "n_key_value_heads"):
        del stored[later]
    path.write_text(json.dumps(stored))
    assert is_equal(ll.load_result(path, HeadScores), SCORES)
    assert ll.load_result(path, HeadScores).heads_per_kv is None


def is_equal(a: object, b: object) -> bool:
    """Bit for bit, with NaN equal to itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7777), b.nan_to_num(7777))
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        return True
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(is_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return type(a) is type(b) and a == b


def test_there_is_an_example_of_every_kind():
    assert {type(example) for example in EXAMPLES} == set(results.KINDS.values())
    analyses = {kind for name in ll.analysis.__all__ if dataclasses.is_dataclass(kind := getattr(ll.analysis, name))}
    # What activations are is read again from the model: a cache keeps them.
    assert analyses - {ll.analysis.HeadActivations} <= set(results.KINDS.values())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_result_is_read_back_equal(tmp_path, example):
    path = ll.save_result(example, tmp_path / "deep" / "result.json")
    again = ll.load_result(path, type(example))
    assert is_equal(again, example)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def test_tensors_keep_their_dtype_and_every_bit(tmp_path):
    example = OffsetAttribution(HEADS, THIRDS.float(), "vocabulary")
    for values in (THIRDS, THIRDS.float(), THIRDS.bfloat16()):
        path = ll.save_result(dataclasses.replace(example, values=values), tmp_path / "result.json")
        assert is_equal(ll.load_result(path).values, values)


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got a dict, wanted a result: one of HeadScores, Evaluation"):
        ll.save_result({}, tmp_path / "result.json")
    with pytest.raises(ValueError, match="got inf, wanted finite numbers"):
        ll.save_result(dataclasses.replace(COSTS, kl=(math.inf, 0.0)), tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"result": "HeadScores"}'])
def test_a_file_that_holds_no_result_is_named(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} holds no result"):
        ll.load_result(path)


def test_what_cannot_be_read_says_why(tmp_path):
    path = ll.save_result(COSTS, tmp_path / "result.json")
    with pytest.raises(ValueError, match="holds a SideEffects, wanted a HeadScores"):
        ll.load_result(path, HeadScores)
    stored = json.loads(path.read_text())
    for changed in ({"schema": 2}, {"result": "Horoscope"}):
        path.write_text(json.dumps(stored | changed))
        with pytest.raises(ValueError, match="a newer lofit-lens may have written it"):
            ll.load_result(path)
    del stored["kl"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"result.json is damaged \(KeyError\('kl'\)\)"):
        ll.load_result(path)
