"""Linear probes on the heads' outputs: which heads tell a right answer from a wrong one (ITI, Li et al. 2023, section 3.1).

For each head, logistic regression of the label y in {0, 1} on z, the head's output at the last token of prompt and answer:

    P(y = 1 | z) = sigmoid(w . z + b)

fitted by scikit-learn with its default penalty (C = 1) on standardised z, which lets it converge; w and b are given back for z
as it is. The score is the accuracy on held-out questions: all answers of a question are on one side. (The published code does
not standardise; `standardise=False` does as it does.)

Heads are fitted one after another, which takes a second for 270 heads of 64 on 2,400 texts: on two cores threads took 1.3 times
as long, and processes 1.2 times, once they were there.
"""

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lofit_lens.progress import progress
from lofit_lens.tasks.base import Example, names_of

logger = logging.getLogger(__name__)

#: Share of the questions that probes are judged by, unless another is asked for.
VAL_SHARE = 0.2


@dataclass(frozen=True)
class LabelledAnswers:
    """Prompts with right and wrong answers.

    Args:
        prompts: one for each answer.
        answers: right and wrong ones.
        is_right: which.
        questions: the number of the prompt that each belongs to, so that a question of several examples is one.
        names: what an error calls its example.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    is_right: tuple[bool, ...]
    questions: tuple[int, ...]
    names: tuple[str, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """For each question, the places of its first right and its first wrong answer."""
        right, wrong = ({}, {})
        for place, (question, is_right) in enumerate(zip(self.questions, self.is_right, strict=True)):
            (right if is_right else wrong).setdefault(question, place)
        return [(right[question], wrong[question]) for question in right]


def labelled_answers(examples: Sequence[Example], *, seed: int = 0) -> LabelledAnswers:
    """Every right and every wrong answer of each prompt, once; where none are wrong, another example's right one, by the seed.

    Raises:
        ValueError: no wrong answer can be found: all examples have the same right ones.
    """
    rng = random.Random(seed)
    pool = sorted({example.answer for example in examples})
    numbers: dict[str, int] = {}
    name_of: dict[tuple[str, str, bool, int], str] = {}
    for name, example in zip(names_of(examples), examples, strict=True):
        number = numbers.setdefault(example.prompt, len(numbers))
        wrong = example.rejected or _someone_elses(example, pool, rng)
        for answers, is_right in ((example.right_answers, True), (wrong, False)):
            for answer in answers:
                name_of.setdefault((example.prompt, answer, is_right, number), name)
    return LabelledAnswers(*zip(*((*row, name) for row, name in name_of.items()), strict=True))


def _someone_elses(example: Example, pool: list[str], rng: random.Random) -> tuple[str, ...]:
    others = [answer for answer in pool if answer not in example.right_answers]
    if not others:
        raise ValueError(f"no example has another answer than {example.answer!r}; a probe needs right and wrong ones")
    return (rng.choice(others),)


def held_out(questions: Sequence[int], share: float, *, seed: int) -> Bool[Tensor, "text"]:
    """Which texts are held out: those of a share of the questions, at least one, drawn by the seed.

    Raises:
        ValueError: fewer than two questions, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"got val_share {share}; wanted a share of the questions, above 0 and below 1")
    distinct = sorted(set(questions))
    if len(distinct) < 2:
        raise ValueError(f"got {len(distinct)} question to probe on, wanted at least two: one to fit, one to judge by")
    drawn = set(random.Random(seed).sample(distinct, min(max(1, round(share * len(distinct))), len(distinct) - 1)))
    return torch.tensor([question in drawn for question in questions])


@dataclass(frozen=True)
class Probes:
    """A probe for every head; NaN where a layer has no attention.

    Args:
        accuracy: on held-out texts, in [0, 1].
        weights: w, in units of 1 / z.
        intercepts: b.
    """

    accuracy: Float[Tensor, "layer head"]
    weights: Float[Tensor, "layer head d_head"]
    intercepts: Float[Tensor, "layer head"]


def fit_probes(
    z: Float[Tensor, "layer text head d_head"],
    is_right: Bool[Tensor, "text"],
    is_held_out: Bool[Tensor, "text"],
    *,
    standardise: bool = True,
    max_iter: int = 1000,
) -> Probes:
    """Fit a probe for every head.

    Args:
        z: as `activations.collect_z` gives it; one layer is looked at at a time.
        is_right: the label of each text.
        is_held_out: texts that accuracy is measured on.
        standardise: whether each dimension of z is brought to mean 0 and standard deviation 1 before fitting.
        max_iter: of the solver, which draws nothing.

    Raises:
        ValueError: one of the labels is missing among the texts to fit on, or nothing is held out.
    """
    fitted_on = is_right[~is_held_out]
    if fitted_on.all() or not fitted_on.any() or not is_held_out.any():
        raise ValueError("wanted right and wrong answers to fit on, and some texts held out to judge by")
    n_layers, _, n_heads, d_head = z.shape
    found = Probes(
        torch.full((n_layers, n_heads), torch.nan),
        torch.full((n_layers, n_heads, d_head), torch.nan),
        torch.full((n_layers, n_heads), torch.nan),
    )
    labels, held = is_right.numpy(), is_held_out.numpy()
    n_fitted = n_unconverged = 0
    for layer, head, values in progress(_heads_of(z), "probes", total=n_layers * n_heads):
        mean, scale = _standardisation(values[~held]) if standardise else (0.0, 1.0)
        untrained = LogisticRegression(max_iter=max_iter)
        probe, converged = _fitted(untrained, (values[~held] - mean) / scale, labels[~held])
        n_fitted += 1
        n_unconverged += not converged
        found.accuracy[layer, head] = probe.score((values[held] - mean) / scale, labels[held])
        weights = probe.coef_[0] / scale
        found.weights[layer, head] = torch.from_numpy(weights)
        found.intercepts[layer, head] = float(probe.intercept_[0] - (weights * mean).sum())
    if n_unconverged:
        logger.warning("%d of %d probes did not converge in %d iterations", n_unconverged, n_fitted, max_iter)
    return found


def _fitted(untrained: LogisticRegression, values: np.ndarray, labels: np.ndarray) -> tuple[Any, bool]:
    """The probe, and whether the solver says that it has converged; what else it warns of is passed on."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        probe = untrained.fit(values, labels)
    others = [one for one in raised if not issubclass(one.category, ConvergenceWarning)]
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return probe, len(others) == len(raised)


def _heads_of(z: Float[Tensor, "layer text head d_head"]) -> Iterator[tuple[int, int, np.ndarray]]:
    for layer in range(z.shape[0]):
        of_layer = z[layer].double().numpy()
        for head in range(z.shape[2]):
            if not np.isnan(of_layer[:, head]).any():
                yield layer, head, of_layer[:, head]


def _standardisation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = values.std(0)
    return values.mean(0), np.where(spread > 0, spread, 1.0)
