"""What some heads say of right and wrong answers, read once for any number of analyses; as ITI reads it.

    probe        w, the weights of a logistic probe for z as it is             (Li et al. 2023, arXiv 2306.03341, section 3.1)
    mass-mean    mean of z over right answers - mean of z over wrong ones      (section 4)
    sigma(u)     standard deviation of u . z over all answers, divided by their number

with z a head's output at the last token of prompt and answer. The same task and seed give the directions and sigmas that
`methods.ITI` goes by with its own defaults.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lofit_lens.activations import collect_z
from lofit_lens.heads import Head, checked_heads
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.probes import VAL_SHARE, LabelledAnswers, fit_probes, held_out, labelled_answers
from lofit_lens.tasks.base import Task, non_empty


@dataclass(frozen=True, eq=False)
class HeadActivations:
    """Outputs of some heads at the last token of each prompt and answer.

    Args:
        heads: row `i` of `z` is of `heads[i]`.
        z: float32, on the CPU.
        labelled: the prompts, the answers, and which are right.
        is_held_out: answers that the probe is not fitted on.
    """

    heads: tuple[Head, ...]
    z: Float[Tensor, "k text d_head"]
    labelled: LabelledAnswers
    is_held_out: Bool[Tensor, "text"]

    @property
    def is_right(self) -> Bool[Tensor, "text"]:
        return torch.tensor(self.labelled.is_right)

    def restrict(self, heads: Iterable[tuple[int, int]]) -> "HeadActivations":
        """Those of some heads only, in the given order.

        Raises:
            ValueError: a head that nothing was collected of.
        """
        wanted = tuple(Head(*head) for head in heads)
        missing = [head.label for head in wanted if head not in self.heads]
        if missing:
            raise ValueError(
                f"there are no activations of {missing}, only of {[head.label for head in self.heads]}; collect them with "
                "collect_head_activations(model, task, heads=intervention.heads)"
            )
        return replace(self, heads=wanted, z=self.z[[self.heads.index(head) for head in wanted]])

    def mass_means(self) -> Float[Tensor, "k d_head"]:
        """From the mean of wrong answers to that of right ones, at each head, in units of z; float64."""
        right, wrong = (self.z[:, label].mean(1, dtype=torch.float64) for label in (self.is_right, ~self.is_right))
        return right - wrong

    def probe_weights(self) -> Float[Tensor, "k d_head"]:
        """w at each head, in units of 1 / z; float64."""
        as_one_layer = self.z.transpose(0, 1).unsqueeze(0)
        return fit_probes(as_one_layer, self.is_right, self.is_held_out).weights[0].double()


def collect_head_activations(
    model: LensModel,
    task: Task,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> HeadActivations:
    """What ITI reads of a task's training split, at some heads.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights. It is read as it is, so with nothing attached.
        task: its training split.
        heads: nothing behind the last layer of theirs is run, without a folder; None is all heads.
        seed: which questions the probe is not fitted on, and which wrong answers stand in where a task has none.
        folder: keep activations there, and take them from there (see `activations`): those of all heads, which are what ITI
            keeps and what the next heads are found in.

    Raises:
        ValueError: model, task or heads cannot be used; before anything is run.
    """
    info = check_model(model)
    chosen = checked_heads(info.all_heads if heads is None else heads, info.n_layers, info.n_heads)
    labelled = labelled_answers(non_empty(task.train, task, "train"), seed=seed)
    is_held_out = held_out(labelled.questions, VAL_SHARE, seed=seed)
    layers = sorted({head.layer for head in chosen}) if folder is None else list(range(info.n_layers))
    found = collect_z(model, labelled.prompts, labelled.answers, layers=layers, names=labelled.names, folder=folder)
    z = torch.stack([found[layers.index(head.layer), :, head.index] for head in chosen])
    return HeadActivations(chosen, z, labelled, is_held_out)


def spread_along(z: Float[Tensor, "text d_head"], direction: Float[Tensor, "d_head"]) -> Float[Tensor, ""]:
    """sigma of the direction, brought to length 1; in units of z. NaN if it has no length."""
    return (z @ (direction / direction.norm())).std(correction=0)
