"""lm-evaluation-harness on a tiny local task: its numbers are ours, base and edited."""

import json

import pytest
import torch

import lofit_lens as ll
from lofit_lens.harness import evaluate_with_harness
from lofit_lens.heads import Head
from lofit_lens.interventions import PromptIntervention

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

EDIT = ll.HeadIntervention((Head(0, 1), Head(2, 2)), offset=2 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
QUESTIONS = [
    {"question": f"What is {a} and {b}?", "choices": [f"{a + b}", f"{a - b}", f"{a * b}"], "gold": i % 3}
    for i, (a, b) in enumerate([(7, 2), (9, 4), (8, 3), (6, 5), (9, 9), (7, 4), (5, 1), (4, 3), (8, 6), (9, 1)])
]


@pytest.fixture
def task_folder(tmp_path):
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps(question) for question in QUESTIONS), encoding="utf-8")
    (tmp_path / "sums.yaml").write_text(
        f"""
task: local_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "sums.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
""",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.parametrize(
    "edit", [None, EDIT, PromptIntervention("Q: What is 1 and 1?\nA: 2\n\n")], ids=["base", "edited", "few-shot"]
)
def test_its_accuracy_is_ours(llama, task_folder, edit, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task_folder / "cache"))
    frame = evaluate_with_harness(llama, ["local_sums"], edit, task_folder=task_folder)
    row = frame[frame["metric"] == "acc"].iloc[0]
    right = []
    for question in QUESTIONS:
        prompts = [f"Q: {question['question']}\nA:"] * 3
        scores = ll.answer_logprobs(llama, prompts, [f" {choice}" for choice in question["choices"]], edit)
        right.append(scores.argmax().item() == question["gold"])
    assert row["value"] == pytest.approx(sum(right) / len(right))
    assert (row["task"], row["n"]) == ("local_sums", len(QUESTIONS))
    assert 0 < row["value"] < 1
    # Of the mean of n zeros and ones.
    assert row["stderr"] == pytest.approx((row["value"] * (1 - row["value"]) / (len(QUESTIONS) - 1)) ** 0.5)


def test_the_edit_is_gone_afterwards_and_matters(llama, task_folder):
    before = ll.answer_logprobs(llama, ["Q:"], [" a"])
    assert not torch.equal(before, ll.answer_logprobs(llama, ["Q:"], [" a"], EDIT))
    evaluate_with_harness(llama, ["local_sums"], EDIT, task_folder=task_folder, limit=2)
    assert torch.equal(before, ll.answer_logprobs(llama, ["Q:"], [" a"]))


def open_task(folder, output_type: str) -> str:
    (folder / "open.yaml").write_text(
        f"""
task: local_{output_type}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "sums.jsonl"}
test_split: test
output_type: {output_type}
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 3
metric_list:
  - metric: {"exact_match" if output_type == "generate_until" else "word_perplexity"}
""",
        encoding="utf-8",
    )
    return f"local_{output_type}"


def test_text_in_front_is_in_every_prompt_that_is_answered_freely(llama, task_folder):
    shots, read = "Q: What is 1 and 1?\nA: 2\n\n", []
    task = open_task(task_folder, "generate_until")
    with llama.hooks(fwd_hooks=[("embed.hook_in", lambda tokens, hook: read.extend(tokens.tolist()))]):
        evaluate_with_harness(llama, [task], PromptIntervention(shots), task_folder=task_folder, limit=1)
    prompt = f"{shots}Q: {QUESTIONS[0]['question']}\nA:"
    assert llama.tokenizer.decode(read[0], skip_special_tokens=True) == prompt


def test_text_cannot_be_put_in_front_of_whole_texts(llama, task_folder):
    task = open_task(task_folder, "loglikelihood_rolling")
    with pytest.raises(ValueError, match="has no prompts for this edit's text to go in front of; leave the task out"):
        evaluate_with_harness(llama, [task], PromptIntervention("a"), task_folder=task_folder, limit=1)


def test_an_unknown_task_is_refused(llama):
    with pytest.raises(ValueError, match=r"does not know \['no_such_task'\]"):
        evaluate_with_harness(llama, ["no_such_task"])
