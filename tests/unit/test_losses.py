"""Losses against numbers worked by hand."""

import math

import pytest
import torch
from torch import tensor

from lofit_lens.losses import dpo_loss, group_penalty, l1_penalty, mean_answer_loss

# log, exp and logsigmoid of a few float32 numbers: a few units in the last place.
FLOAT32 = 1e-6


def test_the_answer_loss_is_the_mean_over_all_answer_tokens():
    # -(-1 - 2 - 6) / 3
    assert mean_answer_loss(tensor([-1.0, -2.0, -6.0])).item() == 3.0


def test_dpo_is_the_mean_over_pairs_of_minus_log_sigmoid_of_the_scaled_margin():
    loss = dpo_loss(
        chosen=tensor([-1.0, -4.0]),
        rejected=tensor([-3.0, -5.0]),
        reference_chosen=tensor([-2.0, -1.0]),
        reference_rejected=tensor([-2.5, -4.0]),
        beta=0.5,
    )
    # Pair 1: (-1 + 2) - (-3 + 2.5) = 1.5, times 0.5 = 0.75. Pair 2: (-4 + 1) - (-5 + 4) = -2, times 0.5 = -1.
    # -log sigmoid(x) = log(1 + exp(-x)).
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-0.75)) + math.log(1 + math.exp(1.0))) / 2, rel=FLOAT32)


def test_dpo_at_the_reference_is_log_two_whatever_beta():
    chosen, rejected = tensor([-7.0, -1.0]), tensor([-2.0, -9.0])
    for beta in (0.1, 0.5, 3.0):
        assert dpo_loss(chosen, rejected, chosen, rejected, beta).item() == pytest.approx(math.log(2), rel=FLOAT32)


def test_the_gradient_of_dpo_raises_the_chosen_and_lowers_the_rejected_answer():
    chosen, rejected = tensor([-7.0, -1.0], requires_grad=True), tensor([-2.0, -9.0], requires_grad=True)
    dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.5).backward()
    # d/dx of -log sigmoid(beta x) at 0 is -beta / 2; half of that each for the mean over two pairs.
    torch.testing.assert_close(chosen.grad, tensor([-0.125, -0.125]))
    torch.testing.assert_close(rejected.grad, tensor([0.125, 0.125]))


def test_dpo_of_a_huge_margin_is_finite():
    zero = tensor([0.0])
    assert dpo_loss(tensor([1e4]), zero, zero, zero, beta=0.5).item() == 0.0
    assert dpo_loss(tensor([-1e4]), zero, zero, zero, beta=0.5).item() == 5000.0


def test_the_penalty_is_a_plain_sum_of_absolute_values():
    # 1 + 2 + 0.5 + 0
    assert l1_penalty(tensor([[1.0, -2.0], [0.5, 0.0]])).item() == 3.5


def test_the_group_penalty_is_on_the_norms_of_heads():
    # sqrt(2) * (5 + 0 + 13)
    vectors = tensor([[3.0, -4.0], [0.0, 0.0], [5.0, 12.0]], requires_grad=True)
    penalty = group_penalty(vectors)
    assert penalty.item() == pytest.approx(2**0.5 * 18)
    penalty.backward()
    assert vectors.grad is not None
    # A head that is not there pulls nowhere: at 0 the norm has no direction.
    assert vectors.grad.tolist() == [
        pytest.approx([2**0.5 * 0.6, -(2**0.5) * 0.8]),
        [0.0, 0.0],
        pytest.approx([2**0.5 * 5 / 13, 2**0.5 * 12 / 13]),
    ]
