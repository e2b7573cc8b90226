"""MQuAKE: a fact is edited in the prompt, and a question of several hops must follow it (Zhong et al., 2023, arXiv 2305.14795).

The files are LoFiT's (`mquake/{train,val,test}.jsonl` of the data folder; 134, 95 and 864 records of MQuAKE-CF with one
edit each; the paper calls them two-hop, but there are two, three and four hops, see `info["hops"]`). As in LoFiT's code, the
first of the three paraphrased questions is asked, the first answer is learned, and any alias is right.

One example:

    Q: Imagine that The name of the current head of the Nigeria government is Karl Döhler. Who was the head of government of
    the country where Ahmadu Bello was a citizen? A: Karl Döhler

The published code joins prompt and answer without the space, and its scorer compares what follows the last "A:" without
stripping it: a base model that answers " Karl Döhler" scores 0, a tuned one has learned to leave the space out. Here the
answer starts with its space and the scorer strips; `as_published=True` does both as the published code does.

Both scorers read up to the first newline (the published one behind the last "A:"). So an answer that begins with a newline is
empty and wrong, whatever follows, as it is in the published code: a model that has not learned the form of an answer often
starts a new line (the untouched SmolLM2 does on 739 of the 864 test questions), and its 0.00 says that, not what it knows.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lofit_lens.tasks.base import Example, Loss, Metric, Split, Task
from lofit_lens.tasks.data import Record, data_file, first_of, read_records

_FIELDS = {
    "requested_rewrite": list,
    "questions": list,
    "new_answer": str,
    "new_answer_alias": list,
    "single_hops": list,
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MQuAKE(Task):
    """Multi-hop questions under an edited fact.

    Args:
        n_train: training questions, the first of the file; None takes all 134.
        n_val: validation questions, the first of the file; None takes all 95.
        n_test: test questions, the first of the file; None takes all 864.
        as_published: answers without a space in front, and the published scorer.
        data_dir: the only folder to look in; without it, that of LOFIT_LENS_DATA, then the downloads.

    The files are read when a split is first asked for.

    Raises:
        FileNotFoundError: the files are not where they are looked for.
        ValueError: a setting is out of range, more questions are wanted than there are, or a record is bad.
    """

    name: ClassVar[str] = "mquake"
    loss: ClassVar[Loss] = "cross_entropy"
    metric: ClassVar[Metric] = "exact_match"
    published_sizes: ClassVar[dict[Split, int]] = {"train": 134, "val": 95, "test": 864}
    published_chance: ClassVar[float | None] = 0.36

    n_train: Annotated[int, Field(ge=1, strict=True)] | None = None
    n_val: Annotated[int, Field(ge=1, strict=True)] | None = None
    n_test: Annotated[int, Field(ge=1, strict=True)] | None = None
    as_published: bool = False
    data_dir: Path | None = None

    @property
    def stop(self) -> tuple[str, ...]:
        """The end of the line. The published scorer looks behind the last "A:", which may come later: it reads all."""
        return () if self.as_published else ("\n",)

    def build(self, split: Split) -> list[Example]:
        path = data_file(f"mquake/{split}.jsonl", self.data_dir)
        wanted = {"train": self.n_train, "val": self.n_val, "test": self.n_test}[split]
        return [self._example(record) for record in first_of(read_records(path, _FIELDS), wanted, split)]

    @property
    def chance(self) -> float:
        """What naming the edit's new object scores on the test split: the best that can be done without following a hop."""
        return sum(self.is_correct(example.info["object"], example) for example in self.test) / len(self.test)

    def is_correct(self, generated: str, example: Example) -> bool:
        """The first line is the answer or an alias, whatever the case; `as_published` as the module's text says."""
        right = {answer.lower() for answer in example.right_answers}
        if self.as_published:
            return (example.prompt + generated).split("A:")[-1].split("\n")[0].lower() in right
        return generated.split("\n")[0].strip().lower() in {answer.strip() for answer in right}

    def _example(self, record: Record) -> Example:
        fact, new_object = _edit(record)
        questions = [question for question in record["questions"] if isinstance(question, str)]
        aliases = [alias for alias in record["new_answer_alias"] if isinstance(alias, str)]
        if not questions or len(aliases) != len(record["new_answer_alias"]):
            raise record.error("wanted one or more questions, and strings as aliases")
        space = "" if self.as_published else " "
        return Example(
            prompt=f"Q: Imagine that {fact}. {questions[0]} A:",
            answer=space + record["new_answer"],
            aliases=tuple(space + alias for alias in aliases),
            info={"hops": str(len(record["single_hops"])), "object": new_object, "source": record.place},
        )


def _edit(record: Record) -> tuple[str, str]:
    """The edited fact as a sentence, and its new object."""
    match record["requested_rewrite"]:
        case [{"prompt": str(template), "subject": str(subject), "target_new": {"str": str(new_object)}}]:
            return f"{template.replace('{}', subject)} {new_object}", new_object
        case other:
            got: Any = other
            raise record.error(f"got {got!r} for 'requested_rewrite', wanted one edit with prompt, subject and target_new")
