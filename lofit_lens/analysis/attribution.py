"""Direct logit attribution of offsets: what each adds to the logit of the right answer (Elhage et al. 2021).

A head's offset adds a displacement d to the residual stream at every token (see `displacements`). At the token where the answer
is predicted, with the final norm A x / s(x) + b, the scale s(x) as it is in the edited run:

    attribution = (A d / s) . (W_U[right] - mean of W_U[baseline])

in logits, before a soft cap or multiplier behind W_U (Gemma 2's, Cohere's). If a norm stands between W_O and the stream, d is
divided by its scale in the edited run too.

This is the direct path only: not what later heads and MLPs make of the displacement, at this token or at those before, nor
that it changes the scale. With scales held, logits are linear in the stream, so that the heads' attributions add up to what
all the offsets add directly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.activations import collect_norm_scales
from lofit_lens.batches import TOKEN_BUDGET, TokenSequence, encode, encode_answers
from lofit_lens.displacements import offset_displacements
from lofit_lens.evaluation import checked_split
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.scoring import DIVERGED
from lofit_lens.statistics import mean_interval
from lofit_lens.tasks.base import Example, Split, Task, names_of

AnswerTokens = Literal["first", "all"]
Baseline = Literal["wrong answers", "vocabulary"]


@dataclass(frozen=True, eq=False)
class OffsetAttribution:
    """What each head's offset adds directly to the right answer's logit, less what it adds to a baseline's.

    Args:
        heads: as in the intervention.
        values: in logits, for each example; a mean over its answer tokens where all were looked at.
        baseline: what is subtracted: the mean over the first tokens of the "wrong answers", or over the "vocabulary".
    """

    heads: tuple[Head, ...]
    values: Float[Tensor, "head example"]
    baseline: Baseline

    def to_frame(self) -> pd.DataFrame:
        """One row per head, in logits: the mean over examples and its 95 % interval (BCa bootstrap); and how many they are."""
        rows = [
            (head.label, *head, sum(own) / len(own), *mean_interval(own), len(own))
            for head, own in zip(self.heads, self.values.tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["head", "layer", "index", "mean", "low", "high", "n"])


@torch.no_grad()
def attribute_offsets(
    model: LensModel,
    task: Task,
    intervention: HeadIntervention,
    *,
    split: Split = "test",
    answer_tokens: AnswerTokens = "first",
    token_budget: int = TOKEN_BUDGET,
) -> OffsetAttribution:
    """Direct logit attribution of each head's offset on the gold answers of a split.

    The baseline is the first tokens of the wrong answers where every example has some, else the whole vocabulary. A wrong
    answer that begins with the right one's token counts 0, as that token does not tell them apart.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its examples.
        intervention: attached as a whole, scales included; its offsets are what is looked at.
        split: which examples.
        answer_tokens: the first of each answer; or the mean over all of them, always against the vocabulary, because wrong
            answers have no token that corresponds to a later one.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: no offsets, an edit that is not made at all positions, or a model, split or example that cannot be used;
            before anything is run.
        ArithmeticError: a norm's scale is not finite.
    """
    if answer_tokens not in get_args(AnswerTokens):
        raise ValueError(f"got answer_tokens {answer_tokens!r}; wanted one of {get_args(AnswerTokens)}")
    if not intervention.position_free:
        raise ValueError(
            f"the edit is made at {intervention.positions!r} positions, wanted 'all', as the offsets' displacement is the same "
            "at every token: dataclasses.replace(intervention, positions='all')"
        )
    check_model(model)
    examples = checked_split(task, split)
    sequences = encode(model, [e.prompt for e in examples], [e.answer for e in examples], eos=False, names=names_of(examples))
    lengths = [1 if answer_tokens == "first" else len(sequence.answer) for sequence in sequences]
    against_wrong = answer_tokens == "first" and all(example.rejected for example in examples)
    directions = _directions(model, sequences, lengths, _first_wrong_tokens(model, examples) if against_wrong else None)
    linear, _ = lens.norm_parts(model, lens.FINAL_NORM, offset_displacements(model, intervention))
    scales = _scales(model, intervention, examples, sequences, lengths, token_budget)
    values = (linear.to(directions.device) @ directions).cpu() / scales
    means = torch.stack([own.mean(-1) for own in values.split(lengths, dim=-1)], dim=-1)
    return OffsetAttribution(intervention.heads, means, "wrong answers" if against_wrong else "vocabulary")


def _first_wrong_tokens(model: LensModel, examples: Sequence[Example]) -> list[list[int]]:
    rejected = [example.rejected for example in examples]
    firsts = iter([sequence.answer[0] for sequence in encode_answers(model, examples, rejected, eos=False)])
    return [[next(firsts) for _ in own] for own in rejected]


def _directions(
    model: LensModel, sequences: Sequence[TokenSequence], lengths: Sequence[int], wrong: list[list[int]] | None
) -> Float[Tensor, "d_model answer_token"]:
    """The column of W_U of each answer token that is looked at, less the baseline's."""
    W_U = lens.unembedding_weights(model)
    right = [token for sequence, length in zip(sequences, lengths, strict=True) for token in sequence.answer[:length]]
    if wrong is None:
        baseline = W_U.mean(-1, keepdim=True, dtype=torch.float32)
    else:
        baseline = torch.stack([W_U[:, own].float().mean(-1) for own in wrong], dim=-1)
    return W_U[:, right].float() - baseline


def _scales(
    model: LensModel,
    intervention: HeadIntervention,
    examples: Sequence[Example],
    sequences: Sequence[TokenSequence],
    lengths: Sequence[int],
    token_budget: int,
) -> Float[Tensor, "head answer_token"]:
    """What each head's displacement is divided by on its way to the logits that predict each answer token."""
    behind = [lens.norm_behind_attention(model, head.layer) for head in intervention.heads]
    norms = list(dict.fromkeys([lens.FINAL_NORM, *(norm for norm in behind if norm is not None)]))
    owners = [
        (example, len(sequence.prompt) - 1 + i, name)
        for example, sequence, length, name in zip(examples, sequences, lengths, names_of(examples), strict=True)
        for i in range(length)
    ]
    of_token, places, names = zip(*owners, strict=True)
    with attached(model, intervention):
        scales = collect_norm_scales(
            model,
            [example.prompt for example in of_token],
            [example.answer for example in of_token],
            norms,
            positions=places,
            names=names,
            token_budget=token_budget,
        )
    if not scales.isfinite().all():
        raise ArithmeticError(f"scales of norms are not finite; {DIVERGED}")
    of_norm = dict(zip(norms, scales, strict=True))
    final = of_norm[lens.FINAL_NORM]
    return torch.stack([final if norm is None else final * of_norm[norm] for norm in behind])
