"""CLUTRR: a short story about a family, two steps of kinship, and the relation to name (Sinha et al., 2019, arXiv 1908.06177).

The files are LoFiT's (`clutrr/{train,val,test}.json` of the data folder; they are not shipped, for their licence). Prompt
and scorer are those of LoFiT's code, with two differences. The published prompt has two spaces before the second name, a
slip of its query parser; here there is one (`as_published=True`: two). And `n_train` stories are drawn by a generator of
their own, so that a seed names the same stories whatever else was drawn before; which ones the published runs drew is not
known. 4 of the 450 published test stories are also in the pool that the training stories are drawn from; none is removed.

Two examples (the prompt ends with a newline, which belongs to it):

    Read the following story about a family. "Herman asked his son, James, to go grocery shopping for him. James was busy
    and sent his wife, Rosalee, instead." Assume the relations described in the story are all true. Based on relations
    between the fictional characters in the story (assume the relations are all true) and your commonsense knowledge about
    family relationship, how is Rosalee related to Herman? Answer: Rosalee is Herman 's
    daughter-in-law

    ... "Stephanie and her brother Herman are playing the opening game. Herman's son Guy is going to watch them." ...
    how is Guy related to Stephanie? Answer: Guy is Stephanie 's
    nephew
"""

import ast
import random
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task
from lofit_lens.tasks.data import Record, data_file, first_of, read_records

_FIELDS = {"clean_story": str, "query": str, "target_text": str}

_PROMPT = (
    'Read the following story about a family. "{story}" Assume the relations described in the story are all true. '
    "Based on relations between the fictional characters in the story (assume the relations are all true) and your "
    "commonsense knowledge about family relationship, how is {second} related to {first}? "
    "Answer: {second} is {first} 's\n"
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CLUTRR(Task):
    """Two-hop CLUTRR as LoFiT uses it.

    Args:
        seed: which training stories are drawn. Validation and test stories do not depend on it.
        n_train: training stories to draw from the pool of 3,151; None takes all, in the order of the file.
        n_val: validation stories, the first of the file; None takes all 450.
        n_test: test stories, the first of the file; None takes all 450.
        as_published: two spaces before the second name, as in the published prompt.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    The files are read when a split is first asked for.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more stories are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "clutrr"
    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "exact_match"
    published_sizes: ClassVar[dict[Split, int]] = {"train": 300, "val": 450, "test": 450}
    published_chance: ClassVar[float | None] = 1 / 18

    seed: Annotated[int, Field(ge=0, strict=True)] = 42
    n_train: Annotated[int, Field(ge=1, strict=True)] | None = 300
    n_val: Annotated[int, Field(ge=1, strict=True)] | None = None
    n_test: Annotated[int, Field(ge=1, strict=True)] | None = None
    as_published: bool = False
    data_dir: Path | None = None

    @property
    def stop(self) -> tuple[str, ...]:
        """Not the newline: the published scorer strips leading ones, and counts an answer with a second line as wrong."""
        return (".",)

    def build(self, split: Split) -> list[Example]:
        return [_example(record, self.as_published) for record in self._records(split)]

    @property
    def chance(self) -> float:
        """One over the number of distinct relations in the three splits: 1/18 with the published files.

        That is a uniform guess among them. The relations are not balanced: always naming the commonest relation of the
        test split ("sister") scores 46/450, about 0.10.
        """
        return 1 / len({example.answer for split in self.splits.values() for example in split})

    def is_correct(self, generated: str, example: Example) -> bool:
        """The published scorer: what comes before the first full stop, stripped and lower-cased, is the relation."""
        return generated.split(".")[0].strip().lower() == example.answer.lower()

    def _records(self, split: Split) -> list[Record]:
        path = data_file(f"clutrr/{split}.json", self.data_dir)
        records = read_records(path, _FIELDS)
        wanted = {"train": self.n_train, "val": self.n_val, "test": self.n_test}[split]
        chosen = first_of(records, wanted, split)
        return random.Random(self.seed).sample(records, wanted) if split == "train" and wanted else chosen


def _example(record: Record, as_published: bool) -> Example:
    first, second = _query(record)
    space = " " if as_published else ""
    # The brackets around names mark entities for other uses of the data.
    story = record["clean_story"].replace("[", "").replace("]", "")
    return Example(
        prompt=_PROMPT.format(story=story, first=first, second=space + second),
        answer=record["target_text"],
        info={
            "relation": record["target_text"],
            "first": first,
            "second": second,
            "source": record.place,
        },
    )


def _query(record: Record) -> tuple[str, str]:
    """The two names of "('Herman', 'Rosalee')": how is the second related to the first?"""
    problem = f"got {record['query']!r} for 'query', wanted two names, such as \"('Ann', 'Bob')\""
    try:
        names = ast.literal_eval(record["query"])
    except (ValueError, SyntaxError) as error:
        raise record.error(problem) from error
    match names:
        case (str(first), str(second)):
            return first, second
        case _:
            raise record.error(problem)
