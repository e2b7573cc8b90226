"""TriviaQA and Natural Questions as multiple choice: does an edit for one task harm what the model knows elsewhere?

ITI's splits (Li et al. 2023, section 5; the paper's Table 5): the validation questions of both sets, each with all its right
answers and one wrong answer that a language model made up. They are for evaluation only: there is nothing to train on.

    Q: who sings does he love me with reba
    A: Linda Davis            against            A: Martina McBride

The first right answer listed decides MC1; all count in MC2 and MC3. Neither ITI nor LoFiT publishes the prompt; this one is
TruthfulQA's without instruction and examples, which `preset` can put in front.

Files of the data folder, in the hub's schema: `trivia_qa/validation` (question, answer{value, aliases}, false_answer) and
`natural_questions/validation` (question, answer: a list, false_answer), as `.parquet`, `.jsonl`, `.json` or `.csv`.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task
from lofit_lens.tasks.data import Record, data_file, first_of, read_records


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
        records = read_records(data_file(f"{self.name}/validation.parquet", self.data_dir), self.fields)
        return [self._example(record) for record in first_of(records, self.n_test, split)]

    def _example(self, record: Record) -> Example:
        listed = self.right_answers(record)
        if not listed or not all(isinstance(answer, str) and answer.strip() for answer in listed):
            raise record.error(f"got {record['answer']!r} for 'answer', wanted one or more texts")
        right = list(dict.fromkeys(f" {answer.strip()}" for answer in listed))
        wrong = f" {record['false_answer'].strip()}"
        if not wrong.strip() or wrong in right:
            raise record.error(
                f"got {record['false_answer']!r} for 'false_answer', wanted a text that is no right answer: {right}"
            )
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
        n_test: questions, the first of the file; None takes all.
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
        n_test: questions, the first of the file; None takes all.
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
