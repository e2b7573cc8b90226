"""Open-ended answers: what the judge is shown, what is kept, and a yes-or-no judge from a folder."""

import pytest
import torch

from lofit_lens import YesNoJudge, evaluate_open_ended, generate
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.tasks.base import Example
from lofit_lens.tiny import tiny_pair

EXAMPLES = [
    Example("Be short.\nQ: why?\nA:", " so", aliases=(" thus",), info={"question": "why?"}),
    Example("Q: how?\nA:", " by hand"),
]


def test_a_judge_sees_question_answer_and_references(speaker, toy_task):
    shown = []

    def judge(*arguments):
        shown.append(arguments)
        return 0.25 * len(shown)

    result = evaluate_open_ended(speaker, toy_task({"test": EXAMPLES}), judge, max_new_tokens=6)
    texts = generate(speaker, [example.prompt for example in EXAMPLES], max_new_tokens=6, stop=["\n"])
    assert list(result.texts) == texts
    assert shown == [("why?", texts[0].strip(), ("so", "thus")), ("Q: how?\nA:", texts[1].strip(), ("by hand",))]
    assert (result.metric, result.scores["judge"], result.value) == ("judge", (0.25, 0.5), 0.375)


def test_the_edit_is_at_work(speaker, toy_task):
    edit = HeadIntervention((Head(2, 1),), offset=3 * torch.ones(1, 16))
    result = evaluate_open_ended(speaker, toy_task({"val": EXAMPLES}), lambda *_: 1.0, edit, split="val", max_new_tokens=6)
    assert list(result.texts) == generate(speaker, [e.prompt for e in EXAMPLES], edit, max_new_tokens=6, stop=["\n"])


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_that_is_none_is_refused(speaker, toy_task, score):
    with pytest.raises(ValueError, match=r"wanted a number in \[0, 1\]"):
        evaluate_open_ended(speaker, toy_task({"test": EXAMPLES}), lambda *_: score, max_new_tokens=2)
    with pytest.raises(ValueError, match="the val split of task 'toy' is empty"):
        evaluate_open_ended(speaker, toy_task({"test": EXAMPLES}), lambda *_: 1.0, split="val")


def test_a_prompt_without_room_is_named_by_its_record(speaker, toy_task):
    examples = [*EXAMPLES, Example("Q: " + "so " * 90 + "why?", " so", info={"source": "answers.csv, record 3"})]
    with pytest.raises(ValueError, match=r"^example 2 \(answers.csv, record 3\) has .* tokens and 50 may follow"):
        evaluate_open_ended(speaker, toy_task({"test": examples}), lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"^example 1: the judge gave 2.0 to .*, asked 'Q: how"):
        evaluate_open_ended(speaker, toy_task({"test": EXAMPLES}), lambda q, *_: 2.0 * ("how" in q), max_new_tokens=2)


@pytest.mark.parametrize(("kind", "asked"), [("truth", "True:"), ("info", "Helpful:")])
def test_a_yes_or_no_judge_from_a_folder(tmp_path, monkeypatch, kind, asked):
    hf_model, tokenizer = tiny_pair("llama")
    hf_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = YesNoJudge.load(tmp_path, kind)
    assert judge("why?", "so", ()) in (0.0, 1.0)
    seen = []

    def says(text):
        def generate(input_ids, **options):
            seen.append(tokenizer.decode(input_ids[0], skip_special_tokens=True))
            new = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            return torch.cat([input_ids, new], dim=-1)

        return generate

    for text, score in [(" yes", 1.0), (" Yes.", 1.0), (" no", 0.0), ("", 0.0)]:
        monkeypatch.setattr(judge.model, "generate", says(text))
        assert judge("why?", "so", ("thus",)) == score
    assert seen[0] == f"Q: why?\nA: so\n{asked}"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="got the kind 'style', wanted one of truth, info"):
        YesNoJudge(None, None, "style")  # pyright: ignore[reportArgumentType]
