"""TriviaQA and Natural Questions as multiple choice: does an edit for one task harm what the model knows elsewhere?

ITI's splits (Li et al. 2023, section 5; the paper's Table 5): the validation questions of both sets, each with all its right
answers and one wrong answer that a language model made up. They are for evaluation only: there is nothing to train on.

    Q: who sings does he love me with reba
    A: Linda Davis            against            A: Martina McBride

The first right answer listed decides MC1; all count in MC2 and MC3. Neither ITI nor LoFiT publishes the prompt; this one is
TruthfulQA's without instruction and examples, which `preset` can put in front. A question whose wrong answer is one of the
right ones cannot be judged: it is left out, and a warning counts and names such records.

Files of the data folder, in the hub's schema: `trivia_qa/validation` (question, answer{value, aliases}, false_answer) and
`natural_questions/validation` (question, answer: a list, false_answer), as `.parquet`, `.jsonl`, `.json` or `.csv`.
"""

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task
from lofit_lens.tasks.data import Record, data_file, first_of, read_records

logger = logging.getLogger(__name__)


class _OpenDomain(Task):
    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "mc1"
    fields: ClassVar[dict[str, type]]

    n_test: int | None
    preset: str
    data_dir: Path | None

    @abstractmethod
    def right_answers(self, record: Record) -> list[Any]:
        """What the record lists, the preferred one first."""

    @property
    def chance(self) -> float:
        """One right answer against one wrong one."""
        return 1 / 2

    def build(self, split: Split) -> list[Example]:
        if split != "test":
            return []
        path = data_file(f"{self.name}/validation.parquet", self.data_dir)
        records = read_records(path, self.fields)
        fit, unfit = [], []
        for record in records:
            (unfit if record["false_answer"].strip() in self._right(record) else fit).append(record)
        if unfit:
            numbers = ", ".join(str(record.number) for record in unfit)
            logger.warning("%s: %d left out, whose false answer is a right one: records %s", path, len(unfit), numbers)
        return [self._example(record) for record in first_of(fit, self.n_test, split)]

    def _right(self, record: Record) -> list[str]:
        """The distinct right answers that are not blank."""
        listed = self.right_answers(record)
        right = list(dict.fromkeys(answer.strip() for answer in listed if isinstance(answer, str) and answer.strip()))
        if not right or not all(isinstance(answer, str) for answer in listed):
            raise record.error(f"got {record['answer']!r} for 'answer', wanted one or more texts")
        return right

    def _example(self, record: Record) -> Example:
        right = [f" {answer}" for answer in self._right(record)]
        wrong = f" {record['false_answer'].strip()}"
        if not wrong.strip():
            raise record.error(f"got {record['false_answer']!r} for 'false_answer', wanted a text")
        preset = f"{self.preset}\n\n" if self.preset else ""
        return Example(
            prompt=f"{preset}Q: {record['question'].strip()}\nA:",
            answer=right[0],
            aliases=tuple(right[1:]),
            rejected=(wrong,),
            info={"source": record.place},
        )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TriviaQA(_OpenDomain):
    """TriviaQA (Joshi et al., 2017) as ITI asks it: a right answer against one made-up wrong one.

    Args:
        n_test: questions, the first of the file that can be judged; None takes all.
        preset: the text before every question.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the file is not where it is looked for.
        ValueError: a setting is out of range, more questions are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "trivia_qa"
    fields: ClassVar[dict[str, type]] = {"question": str, "answer": dict, "false_answer": str}

    n_test: Annotated[int, Field(ge=1, strict=True)] | None = None
    preset: str = ""
    data_dir: Path | None = None

    def right_answers(self, record: Record) -> list[Any]:
        """The answer of the quiz, then its aliases."""
        match record["answer"]:
            case {"value": value, "aliases": [*aliases]}:
                return [value, *aliases]
        return []


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NaturalQuestions(_OpenDomain):
    """Natural Questions (Kwiatkowski et al., 2019) as ITI asks it: a right answer against one made-up wrong one.

    Args:
        n_test: questions, the first of the file that can be judged; None takes all.
        preset: the text before every question.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    Raises:
        FileNotFoundError: the file is not where it is looked for.
        ValueError: a setting is out of range, more questions are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "natural_questions"
    fields: ClassVar[dict[str, type]] = {"question": str, "answer": list, "false_answer": str}
    published_sizes: ClassVar[dict[Split, int]] = {"train": 0, "val": 0, "test": 3610}

    n_test: Annotated[int, Field(ge=1, strict=True)] | None = None
    preset: str = ""
    data_dir: Path | None = None

    def right_answers(self, record: Record) -> list[Any]:
        """As listed."""
        return list(record["answer"])
