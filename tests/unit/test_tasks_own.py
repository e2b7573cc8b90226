"""Tasks from a user's own records, and chats."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from lofit_lens import evaluate
from lofit_lens.batches import encode_prompt
from lofit_lens.methods import LoFiT
from lofit_lens.tasks import Chat, Example, Records

ROWS = [
    {"question": "who?", "answer": "Bo", "wrong": ["Al", "Cy"], "also": "Beau; Bob"},
    {"question": "what?", "answer": "tea", "wrong": ["ale", "gin"], "also": ""},
]
TEMPLATES = {"prompt": "Q: {question} A:", "answer": " {answer}", "rejected": " {wrong}", "aliases": " {also}"}
TEMPLATE = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<me>{% endif %}"


def sources(folder: Path) -> dict:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    pd.DataFrame([{**row, "wrong": ";".join(row["wrong"])} for row in ROWS]).to_csv(folder / "a.csv", index=False)
    pd.DataFrame(ROWS).to_parquet(folder / "a.parquet")
    files = {path.suffix: path for path in folder.iterdir()}
    return {**files, "text": str(folder / "a.json"), "list": ROWS, "dataset": datasets.Dataset.from_list(ROWS)}


def test_every_kind_of_source_gives_the_same_examples(tmp_path: Path) -> None:
    for kind, source in sources(tmp_path).items():
        task = Records({"test": source}, **TEMPLATES)
        first, second = task.test
        assert (first.prompt, first.answer) == ("Q: who? A:", " Bo"), kind
        assert first.aliases == (" Beau", " Bob")
        assert first.rejected == (" Al", " Cy")
        assert second.aliases == ()
        assert task.train == ()


def test_it_trains_and_judges_like_any_other_task(llama) -> None:
    task = Records({"train": ROWS, "test": ROWS}, **TEMPLATES, name="mine", loss="dpo", metric="mc1", chance=1 / 3)
    fit = LoFiT(k=2, scale_epochs=1, offset_epochs=1).fit(llama, task)
    result = evaluate(llama, task, fit.intervention)
    assert (result.task, result.metric, result.n, task.chance) == ("mine", "mc1", 2, 1 / 3)
    assert evaluate(llama, task, metric="exact_match").metric == "exact_match"


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({"prompt": "Q: {qestion}"}, ROWS, r"the test records, line 1 \(record 1\): got the fields .*wanted 'qestion'"),
        ({"answer": "{also}"}, ROWS, r"line 2 \(record 2\): got no text from the template '\{also\}'"),
        ({"rejected": "{wrong} {also}"}, ROWS, "wanted one field in it"),
        ({"rejected": "no field"}, ROWS, "wanted one field in it"),
        ({"answer": " {answer"}, ROWS, r"line 1 \(record 1\): got the template ' \{answer', which cannot be read"),
        ({}, [{**ROWS[0], "wrong": ["Al", "Al"]}], "got a wrong answer twice"),
        *(
            ({}, [ROWS[0], {**ROWS[1], field: value}], rf"line 2 \(record 2\): got .* for '{field}', wanted a text or a number")
            for field, value in [
                ("question", None),
                ("question", float("nan")),
                ("question", ["who?"]),
                ("answer", {"text": "tea"}),
                ("wrong", float("nan")),
                ("wrong", {"text": "ale"}),
                ("wrong", ["ale", None]),
                ("also", [["brew"]]),
            ]
        ),
        ({"answer": " {answer:d}"}, ROWS, r"line 1 \(record 1\): the template ' \{answer:d\}' cannot be filled with"),
        ({}, [ROWS[0], "what?"], r"line 2 \(record 2\): got str, wanted a dict of fields"),
        ({}, [{**ROWS[0], 7: "seven"}, {7: "seven"}], r"line 2 \(record 2\): got the fields \['7'\], wanted 'answer'"),
        ({}, 7, "got int for the test records, wanted a file or a list of dicts"),
    ],
)
def test_a_record_that_does_not_fit_is_named(settings: dict, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = Records({"test": rows}, **{**TEMPLATES, **settings}).test


def test_numbers_are_texts_and_null_is_none() -> None:
    rows = [{"question": 2, "answer": 4.5, "wrong": np.int64(5), "also": None}]
    (example,) = Records({"test": rows}, **TEMPLATES).test
    assert (example.prompt, example.choices) == ("Q: 2 A:", (" 4.5", " 5"))


def test_a_right_answer_given_twice_counts_once() -> None:
    (example,) = Records({"test": [{**ROWS[0], "also": "Bob; Beau; Bo; Bob"}]}, **TEMPLATES).test
    assert example.right_answers == (" Bo", " Bob", " Beau")


def test_its_settings_are_its_templates_and_where_the_records_are_never_the_records(llama) -> None:
    task = Records({"train": "a.csv", "val": iter(ROWS), "test": ROWS}, **TEMPLATES)  # nothing is read for it
    wanted = {**TEMPLATES, "sources": {"train": "a.csv", "val": "records", "test": "2 records"}}
    assert json.loads(json.dumps(task.settings())) == wanted
    assert len(task.val) == 2
    llama.tokenizer.chat_template = TEMPLATE
    try:
        assert Chat(task, llama.tokenizer, system="Be brief.").settings() == {**wanted, "system": "Be brief."}
    finally:
        llama.tokenizer.chat_template = None


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"got the splits \['tset'\], wanted some of train, val, test"):
        Records({"tset": ROWS}, **TEMPLATES)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got loss 'dop'"):
        Records({"test": ROWS}, **TEMPLATES, loss="dop")  # pyright: ignore[reportArgumentType]
    for settings in ({"loss": "dpo"}, {"metric": "mc1"}):
        with pytest.raises(ValueError, match="without wrong answers; wanted the template rejected="):
            Records({"test": ROWS}, prompt="{question}", answer="{answer}", **settings)


def test_a_chat_wraps_training_and_test_alike(llama) -> None:
    task = Records({"train": ROWS, "test": ROWS}, **TEMPLATES, metric="mc1")
    with pytest.raises(ValueError, match="no chat template"):
        Chat(task, llama.tokenizer)
    llama.tokenizer.chat_template = TEMPLATE
    try:
        chat = Chat(task, llama.tokenizer, system="Be brief.")
        for split in ("train", "test"):
            example = chat.splits[split][0]
            assert example.prompt == "<system>Be brief.</><user>Q: who? A:</><me>"
            assert (example.answer, example.aliases, example.rejected) == ("Bo", ("Beau", "Bob"), ("Al", "Cy"))
        assert (chat.name, chat.metric, chat.loss, chat.stop) == ("records-chat", "mc1", "cross_entropy", ("\n",))
        assert chat.is_correct("bo", Example("", "Bo"))
        assert Chat(task, llama.tokenizer).test[0].prompt == "<user>Q: who? A:</><me>"
        llama.tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
        ids = encode_prompt(llama, Chat(task, llama.tokenizer).test[0].prompt)
        assert ids.count(llama.tokenizer.bos_token_id) == 1
    finally:
        llama.tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("wrong", "said"), [(["Al", "Al"], "got a wrong answer twice"), (["Al", "Bo"], "got ' Bo' among the right and the wrong")]
)
def test_a_choice_given_twice_is_named_with_its_record(wrong, said):
    records = [{"q": "Who?", "right": "Cy", "wrong": ["Al"]}, {"q": "Who?", "right": "Bo", "wrong": wrong}]
    task = Records({"test": records}, prompt="{q}", answer=" {right}", rejected=" {wrong}")
    with pytest.raises(ValueError, match=rf"record 2\): {said}"):
        _ = task.test
