"""What holds for all task families: the registry, the rooms, and what the generated tasks have in common."""

import ast
import re
import sys
from pathlib import Path

import pytest

from lofit_lens import tasks
from lofit_lens.tasks import (
    CLUTRR,
    IOI,
    SVAMP,
    TASKS,
    ARCChallenge,
    BoolQ,
    Counterfactual,
    Kinship,
    MQuAKE,
    NaturalQuestions,
    SocialIQA,
    Task,
    TriviaQA,
    Truth,
    TruthfulQA,
    task_named,
)
from lofit_lens.tasks.base import SPLITS

GENERATED = [Kinship, Counterfactual, Truth, IOI]


@pytest.fixture(scope="module", params=GENERATED, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> type[Task]:
    return request.param


@pytest.fixture(scope="module")
def task(family: type[Task]) -> Task:
    return family()


def test_registry_finds_every_family_by_its_name() -> None:
    assert list(TASKS.items()) == [
        ("truthfulqa", TruthfulQA),
        ("mquake", MQuAKE),
        ("clutrr", CLUTRR),
        ("social_iqa", SocialIQA),
        ("arc_challenge", ARCChallenge),
        ("boolq", BoolQ),
        ("svamp", SVAMP),
        ("trivia_qa", TriviaQA),
        ("natural_questions", NaturalQuestions),
        ("kinship", Kinship),
        ("counterfactual", Counterfactual),
        ("truth", Truth),
        ("ioi", IOI),
    ]
    assert task_named("kinship", n_train=20, seed=3) == Kinship(n_train=20, seed=3)
    assert task_named("clutrr", seed=1) == CLUTRR(seed=1)


@pytest.mark.parametrize(("name", "guess"), [("kinshp", "kinship"), ("Truth", "truth"), ("CLUTRR", "clutrr")])
def test_unknown_task_is_refused_with_the_known_names_and_the_nearest(name: str, guess: str) -> None:
    with pytest.raises(
        ValueError, match=f"got the task name '{name}'.*clutrr, .*kinship, counterfactual, truth, ioi.*'{guess}'"
    ):
        task_named(name)


def test_unknown_task_unlike_any_other_gets_no_guess() -> None:
    with pytest.raises(ValueError, match=r"ioi$"):
        task_named("xyz")


#: These have a test split only.
EVALUATION_ONLY = ("trivia_qa", "natural_questions")


@pytest.mark.parametrize("name", [name for name in TASKS if name not in EVALUATION_ONLY])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_train": 0}, "n_train\n.*greater than or equal to 1"),
        ({"n_val": -1}, "n_val\n.*greater than or equal to 1"),
        ({"n_test": 0}, "n_test\n.*greater than or equal to 1"),
        ({"n_train": "many"}, "n_train\n.*valid integer"),
        ({"n_train": True}, "n_train\n.*valid integer"),
        ({"seed": -1}, "seed\n.*greater than or equal to 0"),
        ({"n_trian": 10}, "n_trian\n.*Unexpected keyword argument"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict, message: str) -> None:
    if "seed" in settings and "seed" not in TASKS[name].__annotations__:
        pytest.skip("this family has no seed")
    with pytest.raises(ValueError, match=message):
        task_named(name, **settings)


def test_families_import_nothing_but_the_rooms_below_them() -> None:
    allowed = {f"lofit_lens.tasks.{room}" for room in ("base", "data", "sources", "world")} | {"lofit_lens.files"}
    checked = 0
    for path in Path(tasks.__file__).parent.glob("*.py"):
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                checked += 1
                is_outside = name.split(".")[0] in {*sys.stdlib_module_names, "httpx", "huggingface_hub", "pydantic", "pyarrow"}
                assert is_outside or name in allowed, f"{path.name} imports {name}"
    assert checked > 20


def test_same_settings_same_examples(family: type[Task], task: Task) -> None:
    assert family().splits == task.splits


def test_other_seed_other_examples_in_every_split(task: Task, family: type[Task]) -> None:
    other = task_named(family.name, seed=1)
    for split in SPLITS:
        prompts, other_prompts = ({example.prompt for example in t.splits[split]} for t in (task, other))
        # Truth has few questions, and half of them fall into the same split by chance.
        assert len(prompts & other_prompts) < 0.5 * len(prompts)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 3, 19), (300, 100, 300)])
def test_sizes_are_what_was_asked_for(family: type[Task], sizes: tuple[int, int, int]) -> None:
    made = task_named(family.name, n_train=sizes[0], n_val=sizes[1], n_test=sizes[2])
    assert tuple(len(made.splits[split]) for split in SPLITS) == sizes


def test_smaller_split_is_the_beginning_of_a_larger_one(family: type[Task], task: Task) -> None:
    small = task_named(family.name, n_train=33, n_val=5, n_test=21)
    for split in SPLITS:
        assert small.splits[split] == task.splits[split][: len(small.splits[split])]


@pytest.mark.parametrize("split", SPLITS)
def test_largest_size_is_named_and_works(family: type[Task], split: str) -> None:
    with pytest.raises(ValueError, match=rf"n_{split}=1000000 is more than the \d+") as error:
        task_named(family.name, **{f"n_{split}": 1_000_000})
    found = re.search(r"more than the (\d+)", str(error.value))
    assert found is not None
    most = int(found[1])
    # A smaller split than the default would make the default impossible.
    assert most >= 300 or (split == "val" and most >= 100)
    examples = getattr(task_named(family.name, **{f"n_{split}": most}), split)
    assert len({example.prompt for example in examples}) == most
    with pytest.raises(ValueError, match=f"n_{split}={most + 1} is more than the {most}"):
        task_named(family.name, **{f"n_{split}": most + 1})


def test_white_space_is_where_it_belongs(task: Task) -> None:
    for split in SPLITS:
        for example in task.splits[split]:
            assert re.fullmatch(r"\S.*\S", example.prompt)
            assert "  " not in example.prompt
            for answer in (*example.right_answers, *example.rejected):
                assert re.fullmatch(r" \S(.*\S)?", answer)


def test_no_prompt_twice_and_none_in_two_splits(task: Task) -> None:
    prompts = [example.prompt for split in SPLITS for example in task.splits[split]]
    assert len(set(prompts)) == len(prompts) == 700


def test_right_answers_are_correct_and_rejected_ones_are_not(task: Task) -> None:
    for example in task.test:
        assert all(task.is_correct(answer, example) for answer in example.right_answers)
        assert not any(task.is_correct(answer, example) for answer in (*example.rejected, "", " nothing"))


def test_documented_examples_are_real(task: Task) -> None:
    text = " ".join((sys.modules[type(task).__module__].__doc__ or "").split())
    documented = [example for example in task.train if " ".join((example.prompt + example.answer).split()) in text]
    assert len(documented) == 2
    if task.name == "truth":
        assert all(" /".join(example.rejected).strip() in text for example in documented)


@pytest.mark.parametrize(
    ("family", "n_at_hand"),
    [(TruthfulQA, 3), (MQuAKE, 3), (CLUTRR, 3), (SocialIQA, 1), (ARCChallenge, 2), (BoolQ, 0), (SVAMP, 3)],
)
def test_published_sizes_and_chance_are_those_of_the_files_at_hand(published: Path, family: type[Task], n_at_hand: int) -> None:
    task = family(data_dir=published)
    found = 0
    for split, size in family.published_sizes.items():
        try:
            assert len(task.splits[split]) == size
            found += 1
        except FileNotFoundError:
            continue
    assert found == n_at_hand
    if family.published_chance is not None:
        assert task.chance == pytest.approx(family.published_chance, abs=5e-4)  # three decimals are stated
