"""Social IQa, ARC-Challenge, BoolQ and SVAMP: the reasoning tasks of the paper's Table 3, with its prompts and sizes.

The model generates an option's letter, a yes or no, or an equation and its value, and is judged by what it generated (the
paper); where there are options, `evaluate(..., metric="mc1")` judges by their likelihood instead. The paper gives prompts in
outline only (appendix D) and its code has none for these tasks: what is not in the paper is our choice, namely that a
prompt is one line, that options are named by their letters, that BoolQ is answered by yes or no, and the form of an
equation's value. Training and validation examples are drawn by the seed; test examples are all there are.

    Please choose the correct answer to the question. Question: Carson kissed Alex gently on the cheek and asked to go to
    dinner. What will happen to Carson? A. have a romantic meal B. go on a date C. loved Answer: B

    Question: In a school there are 458 more girls than boys. If there are 692 girls. How many pupils are there in that
    school? Equation: ( ( 692.0 + 692.0 ) - 458.0 ) Answer: 926

Files of the data folder, in the hub's schemas (a name may end in `.jsonl`, `.json`, `.csv` or `.parquet`):
`social_iqa/{train,validation}` (context, question, answerA to answerC, label "1" to "3"),
`arc_challenge/{train,validation,test}` (question, choices{text, label}, answerKey),
`boolq/{train,validation}` (passage, question, answer), `svamp/SVAMP` (Body, Question, Equation, Answer).
"""

import random
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import SPLITS, Example, Loss, Metric, Split, Task, chance_of_choices
from lofit_lens.tasks.data import Record, data_file, first_of, read_records

Size = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]


class _FromFiles(Task):
    """A task whose splits are drawn from files: what the four have in common."""

    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "exact_match"
    #: The file that each split comes from. Splits of one file share no record.
    files: ClassVar[dict[Split, str]]
    fields: ClassVar[dict[str, type]]

    n_train: int
    n_val: int
    n_test: int | None
    seed: int
    data_dir: Path | None

    @abstractmethod
    def example(self, record: Record) -> Example:
        """One record as an example."""

    @property
    def stop(self) -> tuple[str, ...]:
        """The end of a line or of a sentence."""
        return ("\n", ".")

    def build(self, split: Split) -> list[Example]:
        records = read_records(data_file(self.files[split], self.data_dir), self.fields)
        if split != "test" or self.files["test"] == self.files["train"]:
            random.Random(self.seed).shuffle(records)
        sizes = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        before = SPLITS[: SPLITS.index(split)]
        taken = sum(sizes[other] or 0 for other in before if self.files[other] == self.files[split])
        return [self.example(record) for record in first_of(records[taken:], sizes[split], split)]


def _choice(question: str, labels: Sequence[str], texts: Sequence[str], right: str, record: Record) -> Example:
    if right not in labels or len(set(labels)) != len(labels) or len(labels) < 2 or len(labels) != len(texts):
        raise record.error(f"got the options {list(labels)} and the answer {right!r}, wanted two or more, and it among them")
    options = " ".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    return Example(
        prompt=f"Please choose the correct answer to the question. Question: {question} {options} Answer:",
        answer=f" {right}",
        rejected=tuple(f" {label}" for label in labels if label != right),
        info={"source": record.place},
    )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SocialIQA(_FromFiles):
    """Social IQa (Sap et al., 2019): three options about what people do and feel.

    Args:
        n_train: training examples, drawn from the training file.
        n_val: validation examples, drawn from the same file.
        n_test: test examples, the first of the hub's validation file; None takes all 1,954.
        seed: which examples are drawn.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more examples are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "social_iqa"
    files: ClassVar[dict[Split, str]] = {
        "train": "social_iqa/train.jsonl",
        "val": "social_iqa/train.jsonl",
        "test": "social_iqa/validation.jsonl",
    }
    fields: ClassVar[dict[str, type]] = dict.fromkeys(("context", "question", "answerA", "answerB", "answerC", "label"), str)
    published_sizes: ClassVar[dict[Split, int]] = {"train": 100, "val": 100, "test": 1954}

    n_train: Size = 100
    n_val: Size = 100
    n_test: Size | None = None
    seed: Seed = 42
    data_dir: Path | None = None

    @property
    def chance(self) -> float:
        """One of three options."""
        return 1 / 3

    def example(self, record: Record) -> Example:
        """The label "1" to "3" is the letter A to C."""
        letters = dict(zip("123", "ABC", strict=True))
        texts = [record[f"answer{letter}"] for letter in "ABC"]
        question = f"{record['context']} {record['question']}"
        return _choice(question, "ABC", texts, letters.get(record["label"], "none"), record)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ARCChallenge(_FromFiles):
    """ARC-Challenge (Clark et al., 2018): grade-school science with three to five options.

    Args:
        n_train: training examples, drawn from the training file.
        n_val: validation examples, drawn from the validation file (299 in the hub's).
        n_test: test examples, the first of the test file; None takes all 1,172.
        seed: which examples are drawn.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more examples are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "arc_challenge"
    files: ClassVar[dict[Split, str]] = {
        "train": "arc_challenge/train.jsonl",
        "val": "arc_challenge/validation.jsonl",
        "test": "arc_challenge/test.jsonl",
    }
    fields: ClassVar[dict[str, type]] = {"question": str, "choices": dict, "answerKey": str}
    published_sizes: ClassVar[dict[Split, int]] = {"train": 100, "val": 299, "test": 1172}
    published_chance: ClassVar[float | None] = 0.25

    n_train: Size = 100
    n_val: Size = 299
    n_test: Size | None = None
    seed: Seed = 42
    data_dir: Path | None = None

    @property
    def chance(self) -> float:
        """One over the number of options, on average over the test split."""
        return chance_of_choices(self.test)

    def example(self, record: Record) -> Example:
        """Options keep the labels of the file: letters, or digits in some."""
        match record["choices"]:
            case {"text": [*texts], "label": [*labels]} if all(isinstance(part, str) for part in (*texts, *labels)):
                return _choice(record["question"], labels, texts, record["answerKey"], record)
        raise record.error(f"got {record['choices']!r} for 'choices', wanted lists of strings 'text' and 'label'")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BoolQ(_FromFiles):
    """BoolQ (Clark et al., 2019): a passage, and a question to answer with yes or no.

    Args:
        n_train: training examples, drawn from the training file.
        n_val: validation examples, drawn from the same file.
        n_test: test examples, the first of the hub's validation file; None takes all 3,270.
        seed: which examples are drawn.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more examples are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "boolq"
    files: ClassVar[dict[Split, str]] = {
        "train": "boolq/train.jsonl",
        "val": "boolq/train.jsonl",
        "test": "boolq/validation.jsonl",
    }
    fields: ClassVar[dict[str, type]] = {"passage": str, "question": str, "answer": bool}
    published_sizes: ClassVar[dict[Split, int]] = {"train": 100, "val": 100, "test": 3270}

    n_train: Size = 100
    n_val: Size = 100
    n_test: Size | None = None
    seed: Seed = 42
    data_dir: Path | None = None

    @property
    def chance(self) -> float:
        """One of two answers; the commoner one is right more often than that (62 % in the hub's validation file)."""
        return 1 / 2

    def example(self, record: Record) -> Example:
        """True is yes."""
        right, wrong = (" yes", " no") if record["answer"] else (" no", " yes")
        prompt = f"{record['passage']} Question: {record['question']} Answer:"
        return Example(prompt, right, rejected=(wrong,), info={"source": record.place})


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SVAMP(_FromFiles):
    """SVAMP (Patel et al., 2021): an arithmetic word problem; the equation is generated, then its value, which is judged.

    Args:
        n_train: training examples.
        n_val: validation examples.
        n_test: test examples; None takes all that are left.
        seed: which of the 1,000 problems go where. (The split of the paper's 300 test problems is the hub's, which
            the published file does not show; here it is drawn.)
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more examples are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "svamp"
    #: An equation of two operations, its value and the words between them.
    max_new_tokens: ClassVar[int] = 40
    files: ClassVar[dict[Split, str]] = dict.fromkeys(("train", "val", "test"), "svamp/SVAMP.json")
    fields: ClassVar[dict[str, type]] = {"Body": str, "Question": str, "Equation": str, "Answer": float}
    published_sizes: ClassVar[dict[Split, int]] = {"train": 350, "val": 350, "test": 300}

    n_train: Size = 350
    n_val: Size = 350
    n_test: Size | None = 300
    seed: Seed = 42
    data_dir: Path | None = None

    @property
    def stop(self) -> tuple[str, ...]:
        """The end of the line: numbers have full stops in them."""
        return ("\n",)

    @property
    def chance(self) -> float:
        """No guess is sensible."""
        return 0.0

    def is_correct(self, generated: str, example: Example) -> bool:
        """The first number behind "Answer:" is the value of the equation, whatever the equation."""
        found = re.search(r"Answer:\s*(-?\d+(?:\.\d+)?)", generated)
        return found is not None and float(found[1]) == float(example.info["value"])

    def example(self, record: Record) -> Example:
        """The body ends in a full stop, which the file leaves out in a third of the problems."""
        body = record["Body"].strip()
        body += "" if body.endswith(".") else "."
        value = f"{record['Answer']:.15g}"
        return Example(
            prompt=f"Question: {body} {record['Question'].strip()} Equation:",
            answer=f" {record['Equation']} Answer: {value}",
            info={"value": value, "source": record.place},
        )
