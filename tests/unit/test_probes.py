"""Probes: planted truth, scikit-learn by hand, and who is held out."""

import logging
import math
import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lofit_lens.probes import fit_probes, held_out, labelled_answers
from lofit_lens.tasks import Example


@pytest.fixture(scope="module")
def planted():
    """Two layers of two heads; layer 1, head 0 knows the label in its third dimension, which is small. 60 texts."""
    generator = torch.Generator().manual_seed(0)
    is_right = torch.arange(60) % 2 == 0
    z = torch.randn(2, 60, 2, 4, generator=generator)
    z[1, :, 0, 2] = 0.01 * (is_right.float() + 0.3 * torch.randn(60, generator=generator))
    return z, is_right, torch.arange(60) >= 40


def test_the_head_that_knows_is_found(planted):
    probes = fit_probes(*planted)
    assert probes.accuracy[1, 0] > 0.9
    assert (probes.accuracy[[0, 0, 1], [0, 1, 1]] < 0.8).all()
    assert probes.weights[1, 0].abs().argmax() == 2


def test_weights_are_those_of_z_as_it_is(planted):
    """Whether standardised inside or not, accuracy is that of sigmoid(w . z + b)."""
    z, is_right, is_held_out = planted
    for standardise in (True, False):
        probes = fit_probes(z, is_right, is_held_out, standardise=standardise)
        logits = torch.einsum("lthd,lhd->lth", z, probes.weights) + probes.intercepts.unsqueeze(1)
        agrees = (logits > 0) == is_right.reshape(1, -1, 1)
        assert torch.allclose(agrees[:, is_held_out].float().mean(1), probes.accuracy)


def test_without_standardisation_it_is_the_published_probe(planted):
    z, is_right, is_held_out = planted
    probes = fit_probes(z, is_right, is_held_out, standardise=False)
    own = LogisticRegression(random_state=42, max_iter=1000).fit(z[0, ~is_held_out, 1].double(), is_right[~is_held_out])
    torch.testing.assert_close(probes.weights[0, 1], torch.from_numpy(own.coef_[0]).float())
    assert probes.accuracy[0, 1] == pytest.approx(own.score(z[0, is_held_out, 1].double(), is_right[is_held_out]))


def test_layers_without_attention_stay_nan(planted):
    z, is_right, is_held_out = planted
    z = z.clone()
    z[0] = torch.nan
    probes = fit_probes(z, is_right, is_held_out)
    assert probes.accuracy[0].isnan().all()
    assert not probes.accuracy[1].isnan().any()


def test_probes_that_do_not_converge_are_counted(planted, caplog):
    with caplog.at_level(logging.WARNING):
        fit_probes(*planted, max_iter=1)
        assert "4 of 4 probes did not converge in 1 iterations" in caplog.text
        caplog.clear()
        z, *labels = planted
        fit_probes(torch.cat([z, torch.full_like(z[:1], torch.nan)]), *labels, max_iter=1)
    assert "4 of 4 probes" in caplog.text


def test_other_warnings_of_the_solver_are_no_sign_of_that_and_are_passed_on(planted, monkeypatch, caplog):
    fit = LogisticRegression.fit

    def fit_and_warn(self, *given):
        warnings.warn("something else", UserWarning, stacklevel=1)
        return fit(self, *given)

    monkeypatch.setattr(LogisticRegression, "fit", fit_and_warn)
    with pytest.warns(UserWarning, match="something else"):
        fit_probes(*planted)
    assert "did not converge" not in caplog.text


@pytest.mark.parametrize("spoil", ["one label", "nothing held out"])
def test_labels_that_teach_nothing_are_refused(planted, spoil):
    z, is_right, is_held_out = planted
    labels = torch.ones_like(is_right) if spoil == "one label" else is_right
    held = torch.zeros_like(is_held_out) if spoil == "nothing held out" else is_held_out
    with pytest.raises(ValueError, match="right and wrong answers to fit on, and some texts held out"):
        fit_probes(z, labels, held)


def test_answers_of_a_question_are_on_one_side():
    questions = [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]
    drawn = held_out(questions, 0.4, seed=1)
    sides = {
        question: {side for q, side in zip(questions, drawn.tolist(), strict=True) if q == question} for question in range(5)
    }
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == 2
    assert not torch.equal(drawn, held_out(questions, 0.4, seed=2))
    assert held_out([0, 1], 0.01, seed=0).sum() == 1
    with pytest.raises(ValueError, match="got 1 question"):
        held_out([7, 7], 0.5, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"got val_share {share}; wanted a share of the questions, above 0 and below 1"):
        held_out([0, 1, 2], share, seed=0)


def test_wrong_answers_are_the_examples_own_or_someone_elses():
    own = Example("Who?", " Bo", aliases=(" Bob",), rejected=(" Al", " Cy"))
    labelled = labelled_answers([own, Example("Where?", " here")], seed=0)
    assert labelled.prompts == ("Who?",) * 4 + ("Where?",) * 2
    assert labelled.answers == (" Bo", " Bob", " Al", " Cy", " here", " Bo")
    assert labelled.is_right == (True, True, False, False, True, False)
    assert labelled.questions == (0, 0, 0, 0, 1, 1)
    with pytest.raises(ValueError, match="no example has another answer than ' here'"):
        labelled_answers([Example("Where?", " here")])


def test_a_question_of_several_examples_is_one_and_its_answers_count_once():
    pairs = [
        Example("q", " a", rejected=(" x",)),
        Example("q", " a", rejected=(" y",)),
        Example("other", " b", rejected=(" z",)),
    ]
    labelled = labelled_answers(pairs)
    assert labelled.answers == (" a", " x", " y", " b", " z")
    assert labelled.questions == (0, 0, 0, 1, 1)
    assert labelled.pairs() == [(0, 1), (3, 4)]
