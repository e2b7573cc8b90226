"""Head scores by intervention on the running model: what changes when one head is changed. Each gives `HeadScores`.

Leave one out. How much each head of a fitted edit contributes, given all its others:

    score(h) = Q(all edited heads) - Q(all of them but h)

where Q is what training raises, in nats an answer and with the end-of-sequence token as in training, or the task's metric. For
a task that is trained by cross-entropy it is the mean log-likelihood of the gold answers, for a preference task the margin that
DPO widens: the log-likelihood of the answer minus that of the wrong one it is trained against; both may fall. A head whose
vectors only repeat what the others do scores 0, so the scores do not add up to the whole edit. Of a model in bfloat16, scores
of some hundredths of a nat may be rounding (over 50 answers on Gemma 3 270M, other batches moved them by up to .03).

Activation patching (Meng et al. 2022, arXiv 2202.05262; for heads, Wang et al. 2022, arXiv 2211.00593), with TransformerLens's
own tool. The model reads a corrupted prompt, while one head's `z` is, at every position, what it was on the clean one:

    score(h) = (D(patched at h) - D(corrupted)) / (D(clean) - D(corrupted))

where D is the logit of the answer's first token minus that of the wrong answer's, behind the prompt, averaged over pairs before
the division, so that no pair with a small difference of its own decides. 0 is the corrupted run, 1 the clean one; a head that
works against the answer is below 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, TokenSequence, encode, refuse_one_string
from lofit_lens.evaluation import checked_split, evaluate
from lofit_lens.heads import HeadScores
from lofit_lens.interventions import HeadIntervention, attached, of_model
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.objectives import answer_sequences, preference_sequences
from lofit_lens.patching import patched_head_metrics
from lofit_lens.progress import progress
from lofit_lens.scoring import sequence_logprobs
from lofit_lens.tasks.base import Example, Metric, Split, Task, names_of

Measure = Literal["loss", "metric"]
_MEASURES: tuple[Measure, ...] = ("loss", "metric")


def leave_one_out_scores(
    model: LensModel,
    task: Task,
    intervention: HeadIntervention,
    *,
    split: Split = "val",
    measure: Measure = "loss",
    metric: Metric | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> HeadScores:
    """How much worse a fitted edit is without each of its heads; NaN at heads that it does not edit.

    The split is scored once with the whole edit, and once for each head. A share in `.top` is of the edit's heads, not of all.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its examples, and how an answer is judged.
        intervention: the whole edit; with a single head, what is left without it is the base model.
        split: which examples.
        measure: the fall of what training raises (see the module), or that of the metric, which is coarse: a head may change
            few answers.
        metric: as `evaluate` takes it; None is the task's own. For `measure="metric"` only.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: measure, metric, split, model or intervention (no `HeadIntervention`, or of no head) cannot be used; before
            anything is run.
    """
    if measure not in _MEASURES or (measure == "loss" and metric is not None):
        raise ValueError(
            f"got measure {measure!r} and metric {metric!r}; wanted one of {_MEASURES}, and a metric with the latter only"
        )
    info = check_model(model)
    if not isinstance(intervention, HeadIntervention):
        raise ValueError(f"got a {type(intervention).__name__}, which edits no heads; wanted a HeadIntervention")
    if not intervention.heads:
        raise ValueError("got an edit of no head; wanted one of at least one, which is left out")
    examples = checked_split(task, split)
    by_preference = task.loss == "dpo"
    sequences = (preference_sequences if by_preference else answer_sequences)(model, examples) if measure == "loss" else []

    def quality(edit: HeadIntervention | None) -> float:
        if measure == "metric":
            return evaluate(model, task, edit, split=split, metric=metric, token_budget=token_budget).value
        with attached(model, edit):
            found = sequence_logprobs(model, sequences, token_budget=token_budget).double()
        if by_preference:
            right, wrong = found.reshape(-1, 2).unbind(1)
            found = right - wrong
        return found.mean().item()

    whole = quality(intervention)
    values = torch.full((info.n_layers, info.n_heads), torch.nan)
    for head in progress(intervention.heads, f"{task.name}: leave one out"):
        others = [other for other in intervention.heads if other != head]
        values[head] = whole - quality(intervention.restrict(others) if others else None)
    raised = "margin of the answer over the wrong one" if by_preference else "log-likelihood of the answer"
    name = f"{raised}, in nats," if measure == "loss" else metric or task.metric
    made_by = {"method": f"leave one out ({measure})", **task.provenance(), "split": split, "of": dict(intervention.made_by)}
    return HeadScores(values, f"{name} lost without the head", made_by, is_signed=True, **of_model(model))


class PromptPairs(NamedTuple):
    """Clean prompts and corrupted ones, as `patching_scores(model, *pairs)` takes them."""

    clean_prompts: tuple[str, ...]
    corrupted_prompts: tuple[str, ...]
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]


def swapped_name_pairs(examples: Iterable[Example]) -> PromptPairs:
    """Sentences of the task IOI, corrupted by naming the other person the second time, which turns the answer round.

    Raises:
        ValueError: an example that is no such sentence.
    """
    examples = tuple(examples)
    corrupted = []
    for name, example in zip(names_of(examples), examples, strict=True):
        if not {"subject", "indirect_object"} <= set(example.info):
            raise ValueError(
                f"{name} has no subject and indirect_object in its info; wanted examples of IOI: {example.prompt!r}"
            )
        before, _, after = example.prompt.rpartition(example.info["subject"])
        corrupted.append(before + example.info["indirect_object"] + after)
    return PromptPairs(
        tuple(example.prompt for example in examples),
        tuple(corrupted),
        tuple(example.answer for example in examples),
        tuple(example.rejected[0] for example in examples),
    )


@dataclass(frozen=True)
class _Pairs:
    """Pairs of one length, as tokens; `right` and `wrong` are the first tokens of their answers."""

    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    right: Int[Tensor, "pair"]
    wrong: Int[Tensor, "pair"]

    def difference(self, logits: Float[Tensor, "pair 1 d_vocab"]) -> Float[Tensor, ""]:
        """Sum over pairs of the logit difference at the only position."""
        last = logits[:, 0].float()
        chosen = torch.stack([self.right, self.wrong], dim=1).to(last.device)
        right, wrong = last.gather(1, chosen).unbind(1)
        return (right - wrong).sum()


@torch.no_grad()
def patching_scores(
    model: LensModel,
    clean_prompts: Sequence[str],
    corrupted_prompts: Sequence[str],
    answers: Sequence[str],
    wrong_answers: Sequence[str],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> HeadScores:
    """How much of the clean run each head brings back when its `z` is patched into the corrupted run.

    One pass over all pairs for each head, and three more. Layers without attention are NaN.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights, in evaluation mode.
        clean_prompts: behind which the answer is likelier.
        corrupted_prompts: one for each clean prompt, of as many tokens, so that positions correspond.
        answers: right behind the clean prompt; only their first tokens count.
        wrong_answers: what the answer is held against.
        token_budget: tokens that go through the model at once.

    Raises:
        ValueError: the model cannot be used, or a pair, which is named; before anything is run. Or the clean prompts turn out
            not to make the answers likelier than the corrupted ones do.
    """
    info = check_model(model)
    encoded = _encoded(model, clean_prompts, corrupted_prompts, answers, wrong_answers)
    batches, n_pairs = list(_batches(model, encoded, token_budget)), len(encoded)
    patched = torch.zeros(len(info.all_heads), dtype=torch.float64)
    with model.hooks(fwd_hooks=[lens.last_position_only(model)]):
        clean = sum(_difference(model, pairs, pairs.clean) for pairs in batches) / n_pairs
        corrupted = sum(_difference(model, pairs, pairs.corrupted) for pairs in batches) / n_pairs
        if clean <= corrupted:
            raise ValueError(
                f"the logit difference is {clean:.3f} on the clean prompts and {corrupted:.3f} on the corrupted ones; wanted a "
                "larger one on the clean: swap the two, or choose pairs that this model tells apart"
            )
        for pairs in batches:
            found = patched_head_metrics(model, pairs.clean, pairs.corrupted, pairs.difference, info.all_heads)
            patched += found.cpu()
    values = torch.full((info.n_layers, info.n_heads), torch.nan)
    layers, indices = zip(*info.all_heads, strict=True)
    values[list(layers), list(indices)] = ((patched / n_pairs - corrupted) / (clean - corrupted)).float()
    made_by = {"method": "activation patching", "pairs": n_pairs, "clean": clean, "corrupted": corrupted}
    quantity = "share of the logit difference that the head brings back"
    return HeadScores(values, quantity, made_by, is_signed=True, **of_model(model))


def _difference(model: LensModel, pairs: _Pairs, tokens: Int[Tensor, "pair pos"]) -> float:
    return pairs.difference(lens.plain_forward(model, tokens, torch.ones_like(tokens))).item()


def _encoded(
    model: LensModel,
    clean_prompts: Sequence[str],
    corrupted_prompts: Sequence[str],
    answers: Sequence[str],
    wrong_answers: Sequence[str],
) -> list[tuple[TokenSequence, TokenSequence]]:
    """For each pair, the clean prompt with the answer, and the corrupted one with the wrong answer."""
    refuse_one_string(clean_prompts=clean_prompts, corrupted_prompts=corrupted_prompts)
    refuse_one_string(answers=answers, wrong_answers=wrong_answers)
    counts = [len(texts) for texts in (clean_prompts, corrupted_prompts, answers, wrong_answers)]
    if len(set(counts)) > 1 or counts[0] == 0:
        raise ValueError(
            f"got {counts} clean prompts, corrupted prompts, answers and wrong answers; wanted as many of each, at least one"
        )
    names = [f"pair {i}" for i in range(len(answers))]
    clean = encode(model, clean_prompts, answers, eos=False, names=names)
    corrupted = encode(model, corrupted_prompts, wrong_answers, eos=False, names=names)
    for i, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
        if len(one.prompt) != len(other.prompt):
            raise ValueError(
                f"{names[i]} has {len(one.prompt)} clean and {len(other.prompt)} corrupted tokens; wanted as many of each, so "
                f"that positions correspond: {clean_prompts[i][:60]!r} and {corrupted_prompts[i][:60]!r}"
            )
        if one.answer[0] == other.answer[0]:
            raise ValueError(
                f"the answers {answers[i]!r} and {wrong_answers[i]!r} of {names[i]} start with the same token; wanted two that "
                "their first tokens tell apart"
            )
    return list(zip(clean, corrupted, strict=True))


def _batches(model: LensModel, pairs: Sequence[tuple[TokenSequence, TokenSequence]], token_budget: int) -> Iterator[_Pairs]:
    """Pairs of one length together, so that nothing has to be padded."""
    of_length: dict[int, list[tuple[TokenSequence, TokenSequence]]] = {}
    for pair in pairs:
        of_length.setdefault(len(pair[0].prompt), []).append(pair)
    device = lens.model_device(model)
    for length, alike in of_length.items():
        at_once = max(1, token_budget // length)
        for first in range(0, len(alike), at_once):
            clean, corrupted = zip(*alike[first : first + at_once], strict=True)
            yield _Pairs(
                torch.tensor([sequence.prompt for sequence in clean], device=device),
                torch.tensor([sequence.prompt for sequence in corrupted], device=device),
                torch.tensor([sequence.answer[0] for sequence in clean], device=device),
                torch.tensor([sequence.answer[0] for sequence in corrupted], device=device),
            )
