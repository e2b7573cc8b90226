"""JoLA: gates, penalties and what is left in the end, against scalar loops; in training, gates are drawn once a step."""

import dataclasses
import math

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.methods import JoLA, jola
from lofit_lens.methods.jola import expected_gates, open_probability, sampled_gates
from lofit_lens.tasks import Example

HEADS = [ll.Head(layer, index) for layer in range(3) for index in range(4)]
TOKENS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
#: Float32 against the doubles of Python's own mathematics, on numbers of order 1.
ROUNDING = 1e-6

EXAMPLES = [Example(f"Q: Is {a} more than {b}? A:", " Yes." if a > b else " No.") for a, b in [(9, 2), (3, 4), (8, 1), (2, 7)]]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stretched(x: float) -> float:
    return min(1.0, max(0.0, x * 1.2 - 0.1))


def drawn_gate(log_alpha: float, u: float) -> float:
    return stretched(sigmoid((math.log(u) - math.log(1 - u) + log_alpha) / 0.33))


def probability(log_alpha: float) -> float:
    return sigmoid(log_alpha - 0.33 * math.log(0.1 / 1.1))


def numbers(size: float, *shape: int) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_gates_are_the_papers_formulas():
    log_alpha = torch.linspace(-4, 4, 24).reshape(2, 12)
    u = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    drawn, expected, is_open = sampled_gates(log_alpha, u), expected_gates(log_alpha), open_probability(log_alpha)
    for side in range(2):
        for head in range(12):
            a = log_alpha[side, head].item()
            assert drawn[side, head].item() == pytest.approx(drawn_gate(a, u[side, head].item()), abs=1e-5)
            assert expected[side, head].item() == pytest.approx(stretched(sigmoid(a)), abs=ROUNDING)
            assert is_open[side, head].item() == pytest.approx(probability(a), abs=ROUNDING)
    for gates in (drawn, expected):
        assert (gates.min(), gates.max()) == (0, 1)


def test_a_draw_at_either_end_is_a_gate():
    assert torch.equal(sampled_gates(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])), torch.tensor([[0.0], [1.0]]))


def test_the_probability_of_an_open_gate_is_how_often_it_is_drawn_open():
    log_alpha = torch.tensor([-1.0, 0.5]).unsqueeze(-1)
    u = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    often = (sampled_gates(log_alpha.expand(-1, 20_000), u) > 0).float().mean(-1)
    # Five standard errors of a share of 20,000 draws.
    torch.testing.assert_close(often, open_probability(log_alpha)[:, 0], rtol=0, atol=5 * 0.5 / 20_000**0.5)


def test_the_papers_penalty_is_the_expected_number_of_open_gates():
    log_alpha = numbers(2.0, 2, 12)
    penalty = JoLA(penalty=0.25)._penalty(log_alpha, n_heads=4)
    total = 0.25 * sum(probability(a) for a in log_alpha.flatten().tolist())
    assert [penalty(step).item() for step in range(2)] == [pytest.approx(total, rel=1e-5)] * 2


def test_the_published_penalty_moves_from_offsets_to_scales():
    """Per layer the mean over its heads, summed over layers, divided by layers times heads; offsets' share falls by steps."""
    log_alpha = numbers(2.0, 2, 12)
    penalty = JoLA(as_published=True)._penalty(log_alpha, n_heads=4)
    of_scales, of_offsets = (
        sum(sum(probability(a) for a in side[4 * layer : 4 * layer + 4]) / 4 for layer in range(3)) / (3 * 4)
        for side in log_alpha.tolist()
    )
    for step in range(4):
        share = 0.1 * math.exp(-0.01 * step)
        assert penalty(step).item() == pytest.approx(share * of_offsets + (1 - share) * of_scales, rel=1e-5)


def test_gates_start_open_or_as_the_code_has_them(llama):
    info, generator = ll.check_model(llama), torch.Generator().manual_seed(0)
    assert torch.equal(JoLA(open_at_start=1.5)._gates(info, generator), torch.full((2, 12), 1.5))
    published = JoLA(as_published=True)._gates(info, generator)
    # Xavier's bound of a matrix [4 heads, 1]: sqrt(6 / (4 + 1)).
    assert published.abs().max() <= 1.2**0.5
    assert published.abs().max() > 0.8 * 1.2**0.5
    assert published.min() < 0 < published.max()


def with_parameters(monkeypatch, vectors, log_alpha):
    """Training that ends at these."""

    def train(model, objective, intervention, parameters, *_, **__):
        with torch.no_grad():
            for parameter, value in zip(parameters, (vectors, log_alpha), strict=True):
                parameter.copy_(value)
        return (0.0,)

    monkeypatch.setattr(jola, "train", train)


@torch.no_grad()
def logits_of(model, edit=None) -> torch.Tensor:
    with ll.attached(model, edit):
        return model(TOKENS)


def test_what_is_left_is_the_gated_forward_in_evaluation_mode(llama, task, monkeypatch):
    vectors, log_alpha = numbers(0.5, 2, 12, 16), numbers(3.0, 2, 12)
    log_alpha[:, [2, 7]] = -5.0
    with_parameters(monkeypatch, vectors, log_alpha)
    fit = JoLA().fit(llama, task)
    gates = [[stretched(sigmoid(a)) for a in side] for side in log_alpha.tolist()]

    def gated(layer):
        def edit(z, hook):
            z = z.clone()
            for index in range(4):
                row = 4 * layer + index
                m, a = vectors[:, row]
                z[:, :, index] = (1 + gates[0][row] * m) * z[:, :, index] + gates[1][row] * a
            return z

        return edit

    with torch.no_grad(), llama.hooks(fwd_hooks=[(lens.z_hook(layer), gated(layer)) for layer in range(3)]):
        by_hand = llama(TOKENS)
    # Float32 sums in another order through three layers; logits of order 1 to 10.
    torch.testing.assert_close(logits_of(llama, fit.intervention), by_hand, rtol=1e-4, atol=1e-4)
    assert (by_hand - logits_of(llama)).abs().max() > 0.1
    still_open = tuple(head for head, m, a in zip(HEADS, *gates, strict=True) if max(m, a) >= 1e-6)
    assert 0 < len(still_open) < 12
    assert any((m == 0) != (a == 0) for m, a in zip(*gates, strict=True))
    assert fit.intervention.heads == still_open
    for head, m, a in zip(HEADS, *gates, strict=True):
        assert fit.scores[head] == pytest.approx(m + a, abs=ROUNDING)
    assert fit.intervention.head_scores == tuple(fit.scores[head] for head in still_open)


def test_an_edit_whose_gates_have_all_closed_is_the_base_model(llama, task, monkeypatch, tmp_path, caplog):
    with_parameters(monkeypatch, numbers(0.5, 2, 12, 16), torch.full((2, 12), -9.0))
    made = JoLA().fit(llama, task).intervention
    assert "no gate is open after training on toy" in caplog.text
    assert (made.heads, made.n_parameters) == ((), 0)
    made.save(tmp_path / "closed")
    for edit in (made, ll.load_adapter(tmp_path / "closed", llama), 2 * made):
        assert torch.equal(logits_of(llama, edit), logits_of(llama))


def test_gates_are_drawn_once_a_step_however_a_batch_is_cut(llama, task):
    method = JoLA(learning_rate=1e-2, epochs=2, batch_size=4)
    whole, cut = (dataclasses.replace(method, token_budget=budget).fit(llama, task) for budget in (2048, 1))
    # The same sums in another order, and AdamW divides by small numbers.
    torch.testing.assert_close(cut.losses["both"], whole.losses["both"], rtol=0, atol=1e-3)
    torch.testing.assert_close(cut.intervention.offset, whole.intervention.offset, rtol=0, atol=1e-3)


def test_every_step_draws_anew(llama, task, monkeypatch):
    seen = []
    monkeypatch.setattr(jola, "sampled_gates", lambda log_alpha, u: seen.append(u.clone()) or sampled_gates(log_alpha, u))
    JoLA(epochs=2, batch_size=2).fit(llama, task)
    _, *steps = seen  # the first is where the edit is tried on
    assert len(steps) == 4
    assert len({tuple(u.flatten().tolist()) for u in steps}) == 4


def test_the_penalty_closes_gates_in_a_fit(llama, task):
    free, penalised = (JoLA(epochs=20, penalty=penalty, gate_lr=0.5).fit(llama, task).scores for penalty in (0.0, 1.0))
    assert penalised.values.sum() < 0.5 * free.values.sum()


def test_heads_whose_gates_have_closed_in_a_fit_are_left_out(llama, task, caplog):
    fit = JoLA(epochs=20, penalty=1.0, gate_lr=0.5).fit(llama, task)
    assert fit.scores is not None
    assert len(fit.intervention.heads) == int((fit.scores.values > 0).sum()) < 12
    assert "no gate can close" not in caplog.text


def test_gates_that_cannot_close_are_said_to_be_so(llama, task, caplog):
    assert expected_gates(torch.full((2, 1), jola.CLOSES_AT)).sum().item() == pytest.approx(0, abs=ROUNDING)
    fit = JoLA(epochs=2, penalty=1000.0).fit(llama, task)
    steps = len(fit.losses["both"])
    assert f"in {steps} steps: log_alpha starts at 2 and comes no lower than {2 - 0.05 * steps:.1f}" in caplog.text
    assert len(fit.intervention.heads) == 12


@pytest.mark.parametrize("setting", [{"gate_lr": 0.5}, {"init_std": 0.1}])
def test_gates_and_starts_have_settings_of_their_own(llama, task, setting):
    plain, other = (JoLA(epochs=2, **more).fit(llama, task).intervention for more in ({}, setting))
    assert not torch.equal(plain.offset, other.offset)
