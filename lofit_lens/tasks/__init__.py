"""Tasks: examples to train on and to judge by. One file a family; `TASKS` is where a name finds its class."""

import difflib
from typing import Any

from lofit_lens.tasks.base import Example, Task
from lofit_lens.tasks.clutrr import CLUTRR
from lofit_lens.tasks.counterfactual import Counterfactual
from lofit_lens.tasks.ioi import IOI
from lofit_lens.tasks.kinship import Kinship
from lofit_lens.tasks.mquake import MQuAKE
from lofit_lens.tasks.open_domain import NaturalQuestions, TriviaQA
from lofit_lens.tasks.own import Chat, Records
from lofit_lens.tasks.reasoning import SVAMP, ARCChallenge, BoolQ, SocialIQA
from lofit_lens.tasks.text import open_web_text, texts_of
from lofit_lens.tasks.truth import Truth
from lofit_lens.tasks.truthfulqa import TruthfulQA

_PUBLISHED = (TruthfulQA, MQuAKE, CLUTRR, SocialIQA, ARCChallenge, BoolQ, SVAMP, TriviaQA, NaturalQuestions)
_GENERATED = (Kinship, Counterfactual, Truth, IOI)
TASKS: dict[str, type[Task]] = {task.name: task for task in (*_PUBLISHED, *_GENERATED)}


def task_named(name: str, **settings: Any) -> Task:
    """Make a task from its name, as a command line or a study file has it.

    Args:
        name: a key of `TASKS`.
        settings: arguments of the task's class.

    Raises:
        ValueError: there is no such task, or it has no such setting, or a setting is out of range.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name.lower(), TASKS, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"got the task name {name!r}, wanted one of {', '.join(TASKS)}{guess}")
    return TASKS[name](**settings)


__all__ = [
    "CLUTRR",
    "IOI",
    "SVAMP",
    "TASKS",
    "ARCChallenge",
    "BoolQ",
    "Chat",
    "Counterfactual",
    "Example",
    "Kinship",
    "MQuAKE",
    "NaturalQuestions",
    "Records",
    "SocialIQA",
    "Task",
    "TriviaQA",
    "Truth",
    "TruthfulQA",
    "open_web_text",
    "task_named",
    "texts_of",
]
