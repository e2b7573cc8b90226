"""Evaluation: metrics against plain Python, and teacher forcing against generating everything."""

import dataclasses
import json
import math
import random
import statistics

import numpy as np
import pytest
import torch

from lofit_lens import answer_logprobs, check_task, evaluate, evaluate_folds, generate
from lofit_lens.evaluation import check_evaluation
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.outcomes import Evaluation
from lofit_lens.tasks import Example, Records, TruthfulQA

EDIT = HeadIntervention((Head(0, 1), Head(2, 2)), offset=0.3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))


# Multiple choice


@pytest.fixture(scope="module")
def choices(llama):
    """Four answers to one question, the likeliest first."""
    answers = [" yes", " no", " who?", " it is so"]
    scores = answer_logprobs(llama, ["Q: really?\nA:"] * 4, answers).tolist()
    return [answer for _, answer in sorted(zip(scores, answers, strict=True), reverse=True)]


def choice_examples(choices) -> list[Example]:
    first, second, third, fourth = choices
    prompt = "Q: really?\nA:"
    return [
        Example(prompt, first, rejected=(third, second)),
        Example(prompt, third, aliases=(first, fourth), rejected=(second,)),
        Example(prompt, third, rejected=(first, fourth, second)),
        Example(prompt, first, aliases=(second,), rejected=(third, fourth)),
        Example("Q: and now?\nA:", fourth, aliases=(third,), rejected=(first, second)),
    ]


@pytest.mark.parametrize("edit", [None, EDIT], ids=["bare", "edited"])
@pytest.mark.parametrize("token_budget", [40, 2048])
def test_multiple_choice_equals_the_formulas_in_plain_python(llama, toy_task, choices, edit, token_budget):
    examples = choice_examples(choices)
    result = evaluate(llama, toy_task({"test": examples}, metric="mc1"), edit, token_budget=token_budget)
    for i, example in enumerate(examples):
        right = [answer_logprobs(llama, [example.prompt], [answer], edit).item() for answer in example.right_answers]
        wrong = [answer_logprobs(llama, [example.prompt], [answer], edit).item() for answer in example.rejected]
        assert result.scores["mc1"][i] == (1.0 if right[0] > max(wrong) else 0.0)
        all_right, all_wrong = (sum(math.exp(score) for score in scores) for scores in (right, wrong))
        # Log-probabilities of order 30 in float32, in other batches: absolute errors of some 1e-5, so of MC2 too.
        assert result.scores["mc2"][i] == pytest.approx(all_right / (all_right + all_wrong), abs=1e-4)
        assert result.scores["mc3"][i] == pytest.approx(sum(score > max(wrong) for score in right) / len(right))


def test_multiple_choice_by_hand(llama, toy_task, choices):
    result = evaluate(llama, toy_task({"test": choice_examples(choices)[:4]}, metric="mc1"))
    # By the order of the answers: only the gold answer counts for MC1, each right one for MC3.
    assert result.scores["mc1"] == (1.0, 0.0, 0.0, 1.0)
    assert result.scores["mc3"] == (1.0, 1 / 3, 0.0, 1.0)
    assert (result.metric, result.value, result.n) == ("mc1", 0.5, 4)
    assert result.mean("mc3") == pytest.approx((1 + 1 / 3 + 0 + 1) / 4)
    assert (result.texts, result.generated) == ((), 0)


def test_mc2_of_answers_too_unlikely_for_exp(llama, toy_task):
    right, wrong = " so it is" * 24, " so it was" * 22
    a, b = answer_logprobs(llama, ["Q:"] * 2, [right, wrong]).double().tolist()
    assert math.exp(max(a, b)) == 0.0, "too likely to test anything"
    [mc2] = evaluate(llama, toy_task({"test": [Example("Q:", right, rejected=(wrong,))]}, metric="mc1")).scores["mc2"]
    # Scores near -1000 in float32 are exact to 1e-3 or so.
    assert mc2 == pytest.approx(1 / (1 + math.exp(b - a)), rel=1e-2)


def test_multiple_choice_without_wrong_answers_is_refused(llama, toy_task):
    examples = [Example("Q:", " a", rejected=(" b",)), Example("Q:", " a")]
    with pytest.raises(ValueError, match="example 1 of 'toy' has no wrong answers"):
        evaluate(llama, toy_task({"test": examples}, metric="mc1"))


# Exact match


def random_prompts(n: int) -> list[str]:
    letters = random.Random(0)
    return ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=letters.randint(5, 20))) for _ in range(n)]


@pytest.fixture(scope="module")
def spoken(speaker):
    """Prompts with the model's own whole answers, those that are not empty."""
    prompts = random_prompts(60)
    pairs = zip(prompts, generate(speaker, prompts, max_new_tokens=16), strict=True)
    return [(prompt, text) for prompt, text in pairs if text]


def gold_examples(spoken) -> list[Example]:
    """Gold answers in turn: the model's own, one letter more, one less or more at the front, in small letters, an alias."""
    examples = []
    for i, (prompt, text) in enumerate(spoken):
        variants = [
            Example(prompt, text),
            Example(prompt, text + "x"),
            Example(prompt, text[:-1] or "q"),
            Example(prompt, text.swapcase()),
            Example(prompt, "no such answer", aliases=("nor this", text)),
            Example(prompt, text),
        ]
        examples.append(variants[i % len(variants)])
    return examples


@pytest.mark.parametrize("stop", [("\n",), ("P", "s")])
@pytest.mark.parametrize("max_new_tokens", [16, 4])
def test_exact_match_equals_generating_everything(speaker, toy_task, spoken, stop, max_new_tokens):
    examples = gold_examples(spoken)
    task = toy_task({"test": examples}, stop=stop, max_new_tokens=max_new_tokens)
    result = evaluate(speaker, task, token_budget=256)
    texts = generate(speaker, [example.prompt for example in examples], max_new_tokens=max_new_tokens, stop=stop)
    assert list(result.texts) == texts
    scores = [float(task.is_correct(text, example)) for text, example in zip(texts, examples, strict=True)]
    assert list(result.scores["exact_match"]) == scores
    # Forced are those whose gold answer is what the model says, up to an end of sequence that comes in time.
    forced = [e.answer == text and len(text) < max_new_tokens for e, (_, text) in zip(examples, spoken, strict=True)]
    assert result.generated <= len(examples) - sum(forced)
    assert 0 < result.generated < result.n
    assert 0 < result.value < 1


def test_exact_match_of_an_edited_model_equals_generating_everything_with_it(speaker, toy_task, spoken):
    prompts = [prompt for prompt, _ in spoken]
    texts = generate(speaker, prompts, EDIT)
    examples = [Example(p, (i % 2 and text) or "x") for i, (p, text) in enumerate(zip(prompts, texts, strict=True))]
    result = evaluate(speaker, toy_task({"val": examples}), EDIT, split="val")
    assert list(result.texts) == texts
    assert 0 < result.generated < result.n
    assert evaluate(speaker, toy_task({"val": examples}), split="val").value < result.value


@pytest.mark.parametrize("metric", ["exact_match", "mc1"])
def test_an_edit_that_has_diverged_gets_no_number(speaker, toy_task, metric):
    diverged = HeadIntervention(EDIT.heads, offset=torch.full((2, 16), torch.nan))
    with pytest.raises(ArithmeticError, match=r"are not finite; the edit has diverged: fit it again"):
        evaluate(speaker, toy_task({"test": [Example("Who?", " Bo", rejected=(" Al",))]}), diverged, metric=metric)


def test_a_prompt_without_room_for_the_answer_is_refused_before_anything_is_run(speaker, toy_task):
    with pytest.raises(ValueError, match="example 0 needs 257 tokens"):
        evaluate(speaker, toy_task({"test": [Example("b" * 240, "d")]}))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_named(llama, toy_task, split):
    with pytest.raises(ValueError, match=f"the {split} split of task 'toy' is empty"):
        evaluate(llama, toy_task({}), split=split)


# Intervals


def evaluation_of(*scores: float) -> Evaluation:
    return Evaluation("toy", "test", "mc2", {"mc2": scores})


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (0, 5), (5, 5), (1, 1), (211, 409)])
def test_the_interval_of_a_share_is_wilsons(successes, n):
    outcomes = (1.0,) * successes + (0.0,) * (n - successes)
    low, high = Evaluation("toy", "test", "mc1", {"mc1": outcomes}).interval()
    p, z = successes / n, statistics.NormalDist().inv_cdf(0.975)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (low, high) == (pytest.approx(middle - half, abs=1e-12), pytest.approx(middle + half, abs=1e-12))


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_where_that_is_good():
    numbers = random.Random(1)
    scores = [numbers.uniform(0.2, 0.8) for _ in range(400)]
    low, high = evaluation_of(*scores).interval()
    mean, error = statistics.fmean(scores), 1.96 * statistics.stdev(scores) / 20
    # 2,000 resamples place each end to about 5 % of the half width.
    assert low == pytest.approx(mean - error, abs=0.15 * error)
    assert high == pytest.approx(mean + error, abs=0.15 * error)


def test_the_bootstrap_is_deterministic_and_leaves_global_random_state_alone():
    numbers = random.Random(0)
    evaluation = evaluation_of(*(numbers.random() for _ in range(30)))
    np.random.seed(0)
    intervals = {evaluation.interval()}
    expected = np.random.random()
    np.random.seed(1)
    intervals.add(evaluation.interval())
    np.random.seed(0)
    assert np.random.random() == expected
    assert len(intervals) == 1


@pytest.mark.parametrize("scores", [(0.3, 0.7), (0.0, 0.5), (0.1, 0.1, 0.1, 0.9), (1.0, 1.0, 0.99999), (1e-12, 1.0, 0.5)])
def test_the_interval_of_few_scores_lies_within_them_and_holds_the_mean(scores):
    evaluation = evaluation_of(*scores)
    low, high = evaluation.interval()
    ulp = 1e-15  # means of resamples are sums that round
    assert min(scores) - ulp <= low <= evaluation.value <= high <= max(scores) + ulp


def test_the_interval_of_equal_scores_is_that_score():
    assert evaluation_of(0.3, 0.3).interval() == (0.3, 0.3)
    assert evaluation_of(0.3).interval() == (0.3, 0.3)


def test_scores_that_differ_by_rounding_alone_have_an_interval_too():
    low, high = evaluation_of(*[1.0] * 99, 1 - 2**-50).interval()
    assert 1 - 2**-49 < low <= high <= 1


@pytest.mark.parametrize("metric", ["exact_match", "mc1", "judge", "mc2", "mc3", "margin"])
def test_zeros_are_failures_where_the_metric_is_a_success_rate_only(metric):
    low, high = Evaluation("toy", "test", metric, {metric: (0.0, 0.0)}).interval()
    assert low == 0
    # Wilson's, with no success among two.
    z_squared = statistics.NormalDist().inv_cdf(0.975) ** 2
    assert high == pytest.approx(z_squared / (2 + z_squared) if metric in ("exact_match", "mc1", "judge") else 0)


def test_the_interval_of_another_metric_can_be_asked_for():
    evaluation = Evaluation("toy", "test", "mc1", {"mc1": (1.0, 0.0), "mc3": (0.5, 0.5)})
    assert evaluation.interval("mc3") == (0.5, 0.5)
    assert evaluation.interval() == evaluation.interval("mc1") != (0.5, 0.5)


# What is kept

RESULT = Evaluation(
    "toy", "val", "mc1", {"mc1": (1.0, 0.0), "mc2": (0.625, 0.1)}, texts=("Där", ""), generated=1, task_settings={"fold": 1}
)


def test_an_evaluation_survives_json():
    stored = json.loads(json.dumps(RESULT.to_json(), allow_nan=False))
    assert Evaluation.from_json(stored) == RESULT
    assert stored.pop("task_settings") == {"fold": 1}
    assert Evaluation.from_json(stored) == dataclasses.replace(RESULT, task_settings={})  # as stored before there were any
    assert (stored["value"], stored["n"], stored["interval"]) == (0.5, 2, list(RESULT.interval()))


def test_the_frame_has_a_row_for_each_example():
    frame = RESULT.to_frame()
    assert frame.to_dict("list") == {"mc1": [1.0, 0.0], "mc2": [0.625, 0.1], "text": ["Där", ""]}
    assert list(evaluation_of(0.5).to_frame().columns) == ["mc2"]


def test_its_text_says_what_was_measured_on_what():
    assert str(RESULT) == "toy mc1 0.500 [0.095, 0.905] (n = 2, val)"


# Parts of a test set


def test_folds_are_pooled_example_by_example():
    first = Evaluation("a", "test", "mc1", {"mc1": (1.0, 0.0), "mc2": (0.5, 0.25)}, ("x", "y"), 1, {"fold": 0})
    second = Evaluation("b", "test", "mc1", {"mc1": (1.0,), "mc2": (0.75,)}, ("z",), 1, {"fold": 1})
    pooled = Evaluation.pooled([first, second])
    assert (pooled.n, pooled.value, pooled.mean("mc2")) == (3, 2 / 3, 0.5)
    assert (pooled.task, pooled.texts, pooled.generated) == ("a + b", ("x", "y", "z"), 2)
    assert pooled.task_settings == {"parts": [{"fold": 0}, {"fold": 1}]}
    assert Evaluation.pooled([first, first]).task == "a"


@pytest.mark.parametrize("others", [[], [Evaluation("a", "val", "mc1", {"mc1": (1.0,)})]])
def test_what_does_not_belong_together_is_not_pooled(others):
    parts = [Evaluation("a", "test", "mc1", {"mc1": (1.0,)}), *others] if others else []
    with pytest.raises(ValueError, match="cannot pool"):
        Evaluation.pooled(parts)


def test_the_metric_can_be_asked_for(llama, toy_task, choices):
    task = toy_task({"test": choice_examples(choices)})
    assert evaluate(llama, task).metric == "exact_match"
    judged = evaluate(llama, task, metric="mc1")
    assert judged.scores["mc1"] == evaluate(llama, toy_task({"test": choice_examples(choices)}, metric="mc1")).scores["mc1"]
    assert [margin > 0 for margin in judged.scores["margin"]] == [score == 1 for score in judged.scores["mc1"]]
    with pytest.raises(ValueError, match="metric 'f1'; wanted one of exact_match, mc1"):
        evaluate(llama, task, metric="f1")


def test_folds_are_judged_each_under_its_own_edit_and_pooled(speaker, toy_task, spoken):
    folds = [toy_task({"test": [Example(p, t or "x")]}) for p, t in spoken[:2]]
    pooled = evaluate_folds(speaker, folds, [None, EDIT])
    alone = [evaluate(speaker, fold, edit) for fold, edit in zip(folds, [None, EDIT], strict=True)]
    assert pooled.scores["exact_match"] == sum((part.scores["exact_match"] for part in alone), ())
    assert evaluate_folds(speaker, folds).n == 2
    with pytest.raises(ValueError, match="got 2 folds and 1 interventions"):
        evaluate_folds(speaker, folds, [EDIT])


@pytest.mark.parametrize(
    ("second", "edit", "message"),
    [
        ([Example("Q:", "o" * 300, info={"source": "b.csv, record 1"})], None, r"example 0 \(b.csv, record 1\) needs"),
        ([], None, "the test split of task 'toy' is empty"),
        ([Example("W:", " b"), Example("Q:", " a")], None, "example 1 of fold 1 is in fold 0 too"),
        ([Example("W:", " b")], HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16)), "L9H9 is out of range"),
    ],
)
def test_every_fold_is_checked_before_one_is_scored(speaker, toy_task, passes, second, edit, message):
    folds = [toy_task({"test": [Example("Q:", " a"), Example("Q:", " a")]}), toy_task({"test": second})]
    with pytest.raises(ValueError, match=message):
        evaluate_folds(speaker, folds, [None, edit])
    with pytest.raises(ValueError, match="example 0 of fold 1 is in fold 0 too"):
        evaluate_folds(speaker, [folds[0], folds[0]])
    other = toy_task({"test": [Example("W:", " b", rejected=(" a",))]}, metric="mc1")
    with pytest.raises(ValueError, match=r"judged by \['exact_match', 'mc1'\]; wanted one metric"):
        evaluate_folds(speaker, [folds[0], other])
    assert passes == []


@pytest.mark.parametrize(
    ("examples", "edit", "settings", "message"),
    [
        ([Example("Q:", "o" * 300)], None, {}, "example 0 needs"),
        ([], None, {}, "the test split of task 'toy' is empty"),
        ([Example("Q:", " a")], None, {"split": "dev"}, "split 'dev'; wanted one of"),
        ([Example("Q:", " a")], None, {"metric": "f1"}, "metric 'f1'; wanted one of"),
        ([Example("Q:", " a")], None, {"metric": "mc1"}, "example 0 of 'toy' has no wrong answers"),
        ([Example("Q:", " a")], HeadIntervention((Head(9, 9),), offset=torch.ones(1, 16)), {}, "L9H9 is out of range"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_an_evaluation_can_be_checked_without_being_run(llama, toy_task, passes, examples, edit, settings, message):
    task = toy_task({"test": examples})
    for refuse in (check_evaluation, evaluate):
        with pytest.raises(ValueError, match=message):
            refuse(llama, task, edit, **settings)
    check_evaluation(llama, toy_task({"test": [Example("Q:", " a")]}), EDIT)
    assert passes == []


def test_truthfulqas_folds_share_no_example(published):
    folds = TruthfulQA.folds(data_dir=published, preset="")
    first, second = ({(example.prompt, example.answer) for example in fold.test} for fold in folds)
    assert (len(first), len(second), first & second) == (409, 408, set())


RIGHT = Example("Who?", " Bo", rejected=(" Al",), info={"source": "people.csv, record 7"})


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"rejected": ()}, r"example 1 \(people.csv, record 7\) of 'toy' has no wrong answers"),
        ({"answer": ""}, r"example 1 \(people.csv, record 7\): the answer '' tokenises to nothing"),
        ({"answer": "o" * 300}, r"example 1 \(people.csv, record 7\) needs \d+ tokens, the model's context has 256"),
        ({"rejected": (" Al", "")}, r"example 1 \(people.csv, record 7\): the answer '' tokenises to nothing"),
        ({"aliases": ("o" * 300,)}, r"example 1 \(people.csv, record 7\) needs \d+ tokens, the model's context has 256"),
    ],
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_bad_example_is_named_before_anything_is_trained(speaker, toy_task, split, spoiled, message):
    splits = {"train": [RIGHT], "val": [RIGHT], "test": [RIGHT]}
    task = toy_task({**splits, split: [RIGHT, dataclasses.replace(RIGHT, **spoiled)]}, metric="mc1")
    with pytest.raises(ValueError, match=message):
        check_task(speaker, task)
    check_task(speaker, toy_task(splits, metric="mc1"))


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        (("",), r"example 1 \(people.csv, record 7\): the answer '' tokenises to nothing"),
        (("o" * 300,), r"example 1 \(people.csv, record 7\) needs \d+ tokens"),
        ((), r"example 1 \(people.csv, record 7\) has no rejected answer"),
    ],
)
def test_what_dpo_rejects_is_checked_too(speaker, toy_task, rejected, message):
    task = toy_task({"train": [RIGHT, dataclasses.replace(RIGHT, rejected=rejected)]}, loss="dpo")
    with pytest.raises(ValueError, match=message):
        check_task(speaker, task)


def test_files_of_other_splits_may_be_missing(speaker, tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text('{"q": "Who?", "a": "Bo"}', encoding="utf-8")
    sources = {"train": tmp_path / "train.jsonl", "test": tmp_path / "test.jsonl"}
    check_task(speaker, Records(sources, prompt="{q}", answer=" {a}"))
    assert "the test split of records cannot be checked" in caplog.text
