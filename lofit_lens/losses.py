"""Losses, as pure functions of log-probabilities."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def mean_answer_loss(token_logprobs: Float[Tensor, "answer_token"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats a token: the mean of -log P over all answer tokens of a batch, prompts not counted."""
    return -token_logprobs.mean()


def dpo_loss(
    chosen: Float[Tensor, "pair"],
    rejected: Float[Tensor, "pair"],
    reference_chosen: Float[Tensor, "pair"],
    reference_rejected: Float[Tensor, "pair"],
    beta: float,
) -> Float[Tensor, ""]:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7), averaged over pairs.

    -log sigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected))), where each number is log P of a
    whole answer, summed over its tokens. The reference is the same model with nothing attached. (In the published code it
    is the model with its freshly initialised vectors, noise included.)
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -logsigmoid(beta * margin).mean()


def l1_penalty(vectors: Float[Tensor, "k d_head"]) -> Float[Tensor, ""]:
    """The plain sum of absolute values over all entries (published code `utils/trainers.py`; not a mean)."""
    return torch.sum(vectors.abs())


def group_penalty(vectors: Float[Tensor, "k d_head"]) -> Float[Tensor, ""]:
    """sqrt(d_head) times the sum of heads' norms: group lasso (Yuan and Lin 2006), under which a head stays or goes whole.

    For entries of one size it is the plain sum of absolute values, so the same weight suits both.
    """
    return vectors.shape[-1] ** 0.5 * vectors.norm(dim=-1).sum()
