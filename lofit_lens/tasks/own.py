"""A task of your own, from files, data sets or lists; and any task as a chat.

    task = Records(
        {"train": "train.csv", "test": "test.jsonl"},
        prompt="Q: {question} A:", answer=" {answer}", rejected=" {distractors}",
    )
    chat = Chat(task, model.tokenizer)

A template takes the fields of a record by name, which hold texts or numbers. For aliases and rejected answers the field may be
a list, or a text with semicolons, as in a table's cell: it makes as many texts as it has items, none if it is empty or null.
"""

import string
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from numbers import Number
from pathlib import Path
from typing import Any, cast

from lofit_lens.tasks.base import LOSSES, METRICS, SPLITS, Example, Loss, Metric, Split, Task
from lofit_lens.tasks.data import Record, read_records

Source = str | Path | Iterable[Mapping[str, Any]]


class Records(Task):
    """Examples made from records by templates.

    Args:
        sources: for each split a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, or records: a list of dicts, or a
            `datasets.Dataset`.
        prompt: template of the prompt, such as "Q: {question} A:".
        answer: template of the right answer, its space included: " {answer}".
        aliases: template of other right answers, over a field with several; the answer itself and repetitions are left out.
        rejected: template of wrong answers, over a field with several.
        name: of the task.
        loss: what trains on it; "dpo" needs wrong answers.
        metric: what judges by default; "mc1" needs wrong answers.
        stop: a generated answer ends at the first of these.
        chance: what guessing scores, in [0, 1].

    Raises:
        ValueError: an unknown split, loss or metric, or no `rejected` where they need it, at once; a missing field, one without
            text or number, an empty text, or a wrong answer given twice or as right too, named by its record, when the split is
            first asked for.
    """

    def __init__(
        self,
        sources: Mapping[Split, Source],
        *,
        prompt: str,
        answer: str,
        aliases: str | None = None,
        rejected: str | None = None,
        name: str = "records",
        loss: Loss = "cross_entropy",
        metric: Metric = "exact_match",
        stop: tuple[str, ...] = ("\n",),
        chance: float = 0.0,
    ) -> None:
        unknown = sorted(set(sources) - set(SPLITS))
        if unknown:
            raise ValueError(f"got the splits {unknown}, wanted some of {', '.join(SPLITS)}")
        if loss not in LOSSES or metric not in METRICS:
            raise ValueError(f"got loss {loss!r} and metric {metric!r}; wanted one of {LOSSES}, and one of {METRICS}")
        if rejected is None and (loss == "dpo" or metric == "mc1"):
            raise ValueError(f"got loss {loss!r} and metric {metric!r} without wrong answers; wanted the template rejected=...")
        self._sources, self._stop, self._chance = sources, stop, chance
        self._prompt, self._answer, self._aliases, self._rejected = prompt, answer, aliases, rejected
        vars(self).update(name=name, loss=loss, metric=metric)

    def settings(self) -> dict[str, Any]:
        """The templates, and for each split its file, or how many records it has (if that is known); never the records."""
        templates = {"prompt": self._prompt, "answer": self._answer, "aliases": self._aliases, "rejected": self._rejected}
        return {**templates, "sources": {split: _described(source) for split, source in self._sources.items()}}

    @property
    def stop(self) -> tuple[str, ...]:
        return self._stop

    @property
    def chance(self) -> float:
        return self._chance

    def build(self, split: Split) -> list[Example]:
        source = self._sources.get(split, ())
        if isinstance(source, str | Path):
            records = read_records(Path(source), {})
        elif isinstance(source, Iterable):
            records = [Record(values, Path(f"the {split} records"), number, number) for number, values in enumerate(source, 1)]
        else:
            raise ValueError(f"got {type(source).__name__} for the {split} records, wanted a file or a list of dicts")
        return [self._example(record) for record in records]

    def _example(self, record: Record) -> Example:
        if not isinstance(record.values, Mapping):
            raise record.error(f"got {type(record.values).__name__}, wanted a dict of fields")
        answer = _one(self._answer, record)
        listed = () if self._aliases is None else _several(self._aliases, record)
        aliases = tuple(dict.fromkeys(alias for alias in listed if alias != answer))
        rejected = () if self._rejected is None else _several(self._rejected, record)
        if len({*rejected}) != len(rejected):
            raise record.error(f"got a wrong answer twice, wanted each once: {rejected}")
        if both := {answer, *aliases} & {*rejected}:
            raise record.error(f"got {min(both)!r} among the right and the wrong answers, wanted it in one of them")
        return Example(_one(self._prompt, record), answer, aliases, rejected, info={"source": record.place})


class Chat(Task):
    """A task whose prompts are the user's turn of a chat, in training and evaluation alike.

    (The published code wraps prompts by hand in training, and leaves the wrapping out of some evaluations.)

    Args:
        task: whose examples to wrap. Answers lose the space in front of them, because a chat's answer starts a line.
        tokenizer: its chat template is used: `model.tokenizer`.
        system: what the system says first, if anything.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(self, task: Task, tokenizer: Any, *, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this tokenizer has no chat template; use the task as it is, or a model that was tuned to chat")
        self._task, self._tokenizer, self._system = task, tokenizer, system
        vars(self).update(name=f"{task.name}-chat", loss=task.loss, metric=task.metric, max_new_tokens=task.max_new_tokens)

    def settings(self) -> dict[str, Any]:
        """Those of the task inside, and what the system says."""
        return {**self._task.settings(), "system": self._system}

    @property
    def stop(self) -> tuple[str, ...]:
        return self._task.stop

    @property
    def chance(self) -> float:
        return self._task.chance

    def is_correct(self, generated: str, example: Example) -> bool:
        """As the task judges."""
        return self._task.is_correct(generated, example)

    def build(self, split: Split) -> list[Example]:
        return [self._wrapped(example) for example in self._task.splits[split]]

    def _wrapped(self, example: Example) -> Example:
        turns = [] if self._system is None else [{"role": "system", "content": self._system}]
        turns.append({"role": "user", "content": example.prompt.strip()})
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        bare = lambda answers: tuple(answer.lstrip() for answer in answers)  # noqa: E731
        return replace(
            example,
            prompt=cast(str, text),
            answer=example.answer.lstrip(),
            aliases=bare(example.aliases),
            rejected=bare(example.rejected),
        )


def _described(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"{len(source)} records" if isinstance(source, Sized) else "records"


def _fields(template: str, record: Record) -> list[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise record.error(f"got the template {template!r}, which cannot be read: {error}") from error
    for name in names:
        if name not in record.values:
            raise record.error(
                f"got the fields {sorted(map(str, record.values))}, wanted {name!r}, which the template {template!r} names"
            )
    return names


def _one(template: str, record: Record) -> str:
    text = _filled(template, {name: record[name] for name in _fields(template, record)}, record)
    if not text.strip():
        raise record.error(f"got no text from the template {template!r}")
    return text


def _several(template: str, record: Record) -> tuple[str, ...]:
    names = _fields(template, record)
    if len(names) != 1:
        raise record.error(f"got the template {template!r}, wanted one field in it, that holds several texts")
    value = record[names[0]]
    if isinstance(value, str):
        items = [part.strip() for part in value.split(";")]
    elif isinstance(value, Iterable) and not isinstance(value, Mapping):
        items = list(value)
    else:
        items = [] if value is None else [value]
    return tuple(_filled(template, {names[0]: item}, record) for item in items if item is None or str(item).strip())


def _filled(template: str, values: Mapping[str, Any], record: Record) -> str:
    for name, value in values.items():
        if not isinstance(value, str) and not (isinstance(value, Number) and value == value):  # NaN is not itself
            raise record.error(f"got {value!r} ({type(value).__name__}) for {name!r}, wanted a text or a number")
    try:
        return template.format(**values)
    except (ValueError, TypeError) as error:
        raise record.error(f"the template {template!r} cannot be filled with {dict(values)!r}: {error}") from error
