"""Evaluate a model on a task: exact match of generated answers, or multiple choice by likelihood.

Exact match is what greedy generation would score, for less: where every gold token, the end-of-sequence token included, is
the model's arg-max behind the gold tokens before it, greedy generation must produce exactly the gold answer, so one
teacher-forced pass decides; all other answers are generated from the first other token on. See `generation`.

Multiple choice (TruthfulQA, Lin et al. 2022; ITI's scorer), with S(a) = log P(a | prompt) summed over tokens, the gold answer
g, right answers R (g among them) and wrong answers W:

    MC1 = 1 if S(g) > max over W of S, else 0
    MC2 = sum over R of exp S / (sum over R of exp S + sum over W of exp S)
    MC3 = share of R that S puts above every member of W
    margin = S(g) - max over W of S, in nats; the logit difference where answers are single tokens
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from lofit_lens.batches import TOKEN_BUDGET, TokenSequence, encode, encode_answers
from lofit_lens.generation import generated_text, greedy_answers
from lofit_lens.interventions import Intervention, attached, prompted
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.objectives import preference_sequences
from lofit_lens.outcomes import Evaluation
from lofit_lens.progress import progress
from lofit_lens.scoring import sequence_logprobs
from lofit_lens.tasks.base import METRICS, SPLITS, Example, Metric, Split, Task, names_of, non_empty

logger = logging.getLogger(__name__)


def evaluate(
    model: LensModel,
    task: Task,
    intervention: Intervention | None = None,
    *,
    split: Split = "test",
    metric: Metric | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Evaluation:
    """Score a model, under an edit, on a split of a task.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: its examples, and how a generated answer is judged.
        intervention: edit to apply, or None for the base model.
        split: which examples.
        metric: by generated answers ("exact_match") or by the likelihood of all choices ("mc1"); None is the task's own.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: an unknown metric, an unknown or empty split, or an example that cannot be tokenised; before anything
            is run.
        ArithmeticError: scores or logits are not finite.
    """
    return _scored(model, _prepared(model, task, intervention, split, metric), token_budget)


def check_evaluation(
    model: LensModel,
    task: Task,
    intervention: Intervention | None = None,
    *,
    split: Split = "test",
    metric: Metric | None = None,
) -> None:
    """Refuse what `evaluate` refuses, and run nothing: so that work of many evaluations does not end at the last one.

    Raises:
        ValueError: as `evaluate`.
    """
    _prepared(model, task, intervention, split, metric)


class _Prepared(NamedTuple):
    """What a score is to be made of, checked and tokenised."""

    task: Task
    intervention: Intervention | None
    split: Split
    metric: Metric
    examples: tuple[Example, ...]
    sequences: list[TokenSequence]


def _prepared(
    model: LensModel, task: Task, intervention: Intervention | None, split: Split, metric: Metric | None
) -> _Prepared:
    check_model(model)
    if metric not in (None, *METRICS):
        raise ValueError(f"metric {metric!r}; wanted one of {', '.join(METRICS)}, or None for the task's own")
    metric = metric or task.metric
    examples = checked_split(task, split)
    prompts = prompted(intervention, [example.prompt for example in examples])
    asked = tuple(replace(example, prompt=prompt) for example, prompt in zip(examples, prompts, strict=True))
    sequences = _choices(model, task, asked) if metric == "mc1" else _gold_sequences(model, task, asked)
    with attached(model, intervention):
        pass  # what does not fit is refused, before anything is run
    return _Prepared(task, intervention, split, metric, examples, sequences)


def _scored(model: LensModel, prepared: _Prepared, token_budget: int) -> Evaluation:
    score = _multiple_choice if prepared.metric == "mc1" else _exact_match
    with torch.no_grad(), attached(model, prepared.intervention):
        return replace(score(model, prepared, token_budget), task_settings=prepared.task.settings())


def evaluate_folds(
    model: LensModel,
    folds: Sequence[Task],
    interventions: Sequence[Intervention | None] | None = None,
    *,
    split: Split = "test",
    metric: Metric | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Evaluation:
    """Score each fold under the edit that was fitted on it, and pool their examples: TruthfulQA's two-fold number in one call.

        folds = ll.tasks.TruthfulQA.folds()
        ll.evaluate_folds(model, folds, [lofit.fit(model, fold).intervention for fold in folds])

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        folds: tasks that share no example.
        interventions: one for each fold; None is the base model.
        split: of every fold.
        metric: as `evaluate` takes it.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: as `evaluate`, not one intervention for each fold, an example in two folds, or folds of several metrics;
            before anything is run.
    """
    edits = [None] * len(folds) if interventions is None else interventions
    if len(edits) != len(folds):
        raise ValueError(f"got {len(folds)} folds and {len(edits)} interventions; wanted one for each fold")
    parts = [_prepared(model, fold, edit, split, metric) for fold, edit in zip(folds, edits, strict=True)]
    if len({part.metric for part in parts}) > 1:
        raise ValueError(f"got folds judged by {[part.metric for part in parts]}; wanted one metric: pass metric=...")
    fold_of: dict[tuple[str, str], int] = {}
    for fold, part in enumerate(parts):
        for name, example in zip(names_of(part.examples), part.examples, strict=True):
            if (first := fold_of.setdefault((example.prompt, example.answer), fold)) != fold:
                raise ValueError(f"{name} of fold {fold} is in fold {first} too; wanted folds that share no example")
    return Evaluation.pooled([_scored(model, part, token_budget) for part in parts])


def checked_split(task: Task, split: Split) -> tuple[Example, ...]:
    """The examples of a split.

    Raises:
        ValueError: an unknown or empty split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; wanted one of {', '.join(SPLITS)}")
    return non_empty(task.splits[split], task, split)


def check_task(model: LensModel, task: Task) -> None:
    """Make every example of a task and tokenise it with all its answers, right and rejected: a bad record is found at once.

    Methods tokenise what they read before they run anything; this looks at everything that any method or metric may read.

    Raises:
        ValueError: an example that cannot be trained on or judged, named by its file and record; the training split is empty.
        FileNotFoundError: the training file is missing. (What is judged may be elsewhere: a warning says so.)
    """
    check_model(model)
    train = checked_split(task, "train")
    encode_answers(model, train, [e.choices for e in train], eos=True)
    if task.loss == "dpo":
        preference_sequences(model, train)
    to_judge = _choices if task.metric == "mc1" else _gold_sequences
    for split in ("val", "test"):
        try:
            examples = task.splits[split]
        except FileNotFoundError as error:
            logger.warning("the %s split of %s cannot be checked: %s", split, task.name, error)
        else:
            if examples:
                encode_answers(model, examples, [e.choices for e in examples], eos=True)
                to_judge(model, task, examples)


def _gold_sequences(model: LensModel, task: Task, examples: tuple[Example, ...]) -> list[TokenSequence]:
    prompts, answers = [e.prompt for e in examples], [e.answer for e in examples]
    return encode(model, prompts, answers, eos=True, room_for=task.max_new_tokens, names=names_of(examples))


def _exact_match(model: LensModel, prepared: _Prepared, token_budget: int) -> Evaluation:
    task, split, examples, sequences = prepared.task, prepared.split, prepared.examples, prepared.sequences
    texts = [""] * len(examples)
    n_generated = 0
    with progress(None, f"{task.name}: {split}", total=len(examples)) as bar:
        for answer in greedy_answers(model, sequences, task.max_new_tokens, task.stop, token_budget):
            texts[answer.sequence] = generated_text(model, answer.ids, task.stop)
            n_generated += not answer.guessed
            bar.update()
    scores = tuple(float(task.is_correct(text, example)) for text, example in zip(texts, examples, strict=True))
    return Evaluation(task.name, split, "exact_match", {"exact_match": scores}, tuple(texts), n_generated)


def _choices(model: LensModel, task: Task, examples: tuple[Example, ...]) -> list[TokenSequence]:
    for name, example in zip(names_of(examples), examples, strict=True):
        if not example.rejected:
            raise ValueError(f"{name} of {task.name!r} has no wrong answers; multiple choice needs at least one")
    return encode_answers(model, examples, [e.choices for e in examples], eos=False)


def _multiple_choice(model: LensModel, prepared: _Prepared, token_budget: int) -> Evaluation:
    task, split, examples, sequences = prepared.task, prepared.split, prepared.examples, prepared.sequences
    scores = sequence_logprobs(model, sequences, token_budget=token_budget, description=f"{task.name}: choices").double()
    by_metric: dict[str, list[float]] = {"mc1": [], "mc2": [], "mc3": [], "margin": []}
    for example, own in zip(examples, scores.split([len(e.choices) for e in examples]), strict=True):
        right, wrong = own[: len(example.right_answers)], own[len(example.right_answers) :]
        by_metric["mc1"].append(float(right[0] > wrong.max()))
        by_metric["margin"].append(float(right[0] - wrong.max()))
        by_metric["mc2"].append((right.logsumexp(0) - own.logsumexp(0)).exp().item())
        by_metric["mc3"].append((right > wrong.max()).double().mean().item())
    return Evaluation(task.name, split, "mc1", {name: tuple(values) for name, values in by_metric.items()})
