"""TruthfulQA: questions that many people answer wrongly (Lin et al., 2022, arXiv 2109.07958), in ITI's two folds.

The files are the folds that ITI and LoFiT use (`truthfulqa/fold_{0,1}_{train,val,test}_seed_42.csv` of the data folder: 326,
82 and 409 questions in fold 0, 327, 82 and 408 in fold 1; the test questions of the two folds together are all 817). A model
is fitted on one fold's training questions by DPO and judged by multiple choice on its test questions.

To train: `Q: {question} A:`, the best answer against the first incorrect one. Probes (ITI's) learn from all answers.

To judge: ITI's instruction and TruthfulQA's six question-answer pairs (`truthfulqa/mc_prompt.txt`), then

    Q: {question}
    A: {answer}

where an answer that does not end in a full stop gets one. The best answer decides MC1, all correct answers count in MC2 and
MC3; the choices are the columns of the table, not those of the hub's data set.

The published code trains without a space before the answer, though it judges with one; here there is a space in both, and
`as_published=True` leaves it out of training. It cuts `log_probs[3:]` off an answer's tokens, which takes the newline and
"A:" off for a Llama tokenizer and something else for others; here the answer's tokens are known exactly, which is the same
for Llama.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task, chance_of_choices
from lofit_lens.tasks.data import Record, data_file, first_of, read_records, read_text

_FIELDS = {"Question": str, "Best Answer": str, "Correct Answers": str, "Incorrect Answers": str, "Category": str}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TruthfulQA(Task):
    """One fold of TruthfulQA.

    Args:
        fold: 0 or 1.
        n_train: training questions, the first of the file; None takes all.
        n_val: validation questions, the first of the file; None takes all.
        n_test: test questions, the first of the file; None takes all.
        all_pairs: train on each correct answer against each incorrect one, not one pair a question. (A few answers are in
            both columns; against itself none is trained on.)
        preset: the text before every question that is judged; None is the published instruction with six examples
            (`truthfulqa/mc_prompt.txt`), "" is nothing.
        as_published: no space before the answer in training.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    The files are read when a split is first asked for.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more questions are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "truthfulqa"
    loss: ClassVar[Loss] = "dpo"
    metric: ClassVar[Metric] = "mc1"
    published_sizes: ClassVar[dict[Split, int]] = {"train": 326, "val": 82, "test": 409}
    published_chance: ClassVar[float | None] = 0.224

    fold: Literal[0, 1] = 0
    n_train: Annotated[int, Field(ge=1, strict=True)] | None = None
    n_val: Annotated[int, Field(ge=1, strict=True)] | None = None
    n_test: Annotated[int, Field(ge=1, strict=True)] | None = None
    all_pairs: bool = False
    preset: str | None = None
    as_published: bool = False
    data_dir: Path | None = None

    def build(self, split: Split) -> list[Example]:
        path = data_file(f"truthfulqa/fold_{self.fold}_{split}_seed_42.csv", self.data_dir)
        wanted = {"train": self.n_train, "val": self.n_val, "test": self.n_test}[split]
        records = first_of(read_records(path, _FIELDS), wanted, split)
        if split == "train":
            return [example for record in records for example in self._to_train(record)]
        preset = self.preset
        if preset is None:
            preset = read_text(data_file("truthfulqa/mc_prompt.txt", self.data_dir))
        return [_to_judge(record, preset) for record in records]

    @classmethod
    def folds(cls, **settings: Any) -> tuple["TruthfulQA", "TruthfulQA"]:
        """Both folds with the same settings."""
        return cls(fold=0, **settings), cls(fold=1, **settings)

    @property
    def chance(self) -> float:
        """MC1 of a uniform guess among the best answer and the incorrect ones, on average over the test split."""
        return chance_of_choices(self.test)

    def _to_train(self, record: Record) -> list[Example]:
        space = "" if self.as_published else " "
        best, correct, incorrect = (tuple(space + text for text in texts) for texts in _answers(record))
        prompt, info = f"Q: {record['Question'].strip()} A:", _info(record)
        if self.all_pairs:
            pairs = [(right, wrong) for right in correct for wrong in incorrect if right != wrong]
            return [Example(prompt, right, rejected=(wrong,), info=info) for right, wrong in pairs]
        others = tuple(right for right in correct if right != best[0])
        return [Example(prompt, best[0], aliases=others, rejected=incorrect, info=info)]


def _to_judge(record: Record, preset: str) -> Example:
    (best,), correct, incorrect = (tuple(f" {_closed(text)}" for text in texts) for texts in _answers(record))
    return Example(
        prompt=f"{preset}\n\nQ: {record['Question'].strip()}\nA:" if preset else f"Q: {record['Question'].strip()}\nA:",
        answer=best,
        aliases=_without_first(correct, best),
        rejected=incorrect,
        info=_info(record),
    )


def _answers(record: Record) -> tuple[list[str], list[str], list[str]]:
    """The best answer alone, all correct ones, all incorrect ones."""
    best = record["Best Answer"].strip()
    correct, incorrect = (
        [answer for part in record[column].split(";") if (answer := part.strip())]
        for column in ("Correct Answers", "Incorrect Answers")
    )
    if not best or not incorrect:
        raise record.error("got no best answer or no incorrect ones, wanted both")
    if _closed(best) not in map(_closed, correct):
        raise record.error(f"got the best answer {best!r}, which is not among the correct ones, wanted it there")
    return [best], correct, incorrect


def _closed(answer: str) -> str:
    return answer if answer.endswith(".") else f"{answer}."


def _without_first(answers: tuple[str, ...], answer: str) -> tuple[str, ...]:
    """The others. An answer that the table lists twice counts twice in the published MC2, and so here."""
    place = answers.index(answer)
    return answers[:place] + answers[place + 1 :]


def _info(record: Record) -> dict[str, str]:
    return {"question": record["Question"].strip(), "category": record["Category"], "source": record.place}
