"""What a study file says of tasks and methods, checked as it is read: an error names the key, the value and the choices."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from lofit_lens.methods import METHODS, Method
from lofit_lens.tasks import TASKS, Task, task_named

Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
K = Count | Annotated[float, Field(gt=0, le=1, strict=True)]
STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@validated(frozen=True, config=STRICT, kw_only=True)
class Place:
    """Some cells: those of that model, task, source of heads, k and data size, as far as named.

    Args:
        model: of the cell.
        task: of the cell, by its name in the study.
        heads: where its heads come from.
        k: of the cell.
        n_train: of the cell.
    """

    model: str | None = None
    task: str | None = None
    heads: str | None = None
    k: K | None = None
    n_train: Count | None = None

    def applies_to(self, **place: Any) -> bool:
        """Whether everything that is named here is so there."""
        return all(value in (None, place[name]) for name, value in vars(self).items() if name in place)


@validated(frozen=True, config=STRICT, kw_only=True)
class Where(Place):
    """Other settings of a method in some cells.

    Args:
        set: the settings.
    """

    set: dict[str, Any]


@validated(frozen=True, config=STRICT, kw_only=True)
class Skip(Place):
    """Cells that are not run.

    Args:
        method: of the cell, by its name in the study.
    """

    method: str | None = None


@validated(frozen=True, config=STRICT)
class Settings:
    """A method, what of it is chosen on the validation split, and where it has other settings.

    Args:
        method: with the settings that it has everywhere else.
        choose: one setting of what follows the choice of heads, and the values that are tried in every cell.
        where: exceptions, the last one that applies counts.
        heads: where it gets its heads, if not where all methods of the study do.
    """

    method: Any
    choose: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    where: tuple[Where, ...] = ()
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        needed = ("settings", "selector") if self.takes_heads else ("settings",)
        if lacking := [name for name in needed if not hasattr(self.method, name)]:
            raise ValueError(
                f"{type(self.method).__name__} has no {lacking[0]}(), which tells one study's work from another's; "
                "methods.LoFiT shows how to write it"
            )
        known = names_of_settings(type(self.method))
        for wanted in (self.choose, *(where.set for where in self.where)):
            _checked_settings(type(self.method).__name__, wanted, known)
        each_once = [all(values.count(value) == 1 for value in values) and values for values in self.choose.values()]
        if len(self.choose) > 1 or not all(each_once):
            raise ValueError(f"choose = {self.choose}; wanted one setting with the values to try, each once")
        tried: tuple[Any, ...] = self.tried(self.method)
        if self.takes_heads and len({method.selector() for method in tried}) > 1:
            raise ValueError(
                f"choose = {self.choose}; heads are chosen once, before what is tried, and {next(iter(self.choose))} is read "
                "there; make it two methods, each with its own value"
            )
        for where in self.where:
            replace(self.method, **where.set)
        if getattr(self.method, "heads", None) is not None:
            raise ValueError(
                f"{type(self.method).__name__} has heads={self.method.heads}; leave them out, as the study gives them"
            )
        if self.heads is not None and not self.takes_heads:
            raise ValueError(f"{type(self.method).__name__} takes no heads; leave heads = {list(self.heads)} out")

    @property
    def takes_heads(self) -> bool:
        return "heads" in names_of_settings(type(self.method))

    def at(self, **place: Any) -> Method:
        """The method as it is in that cell."""
        method: Any = self.method
        for where in self.where:
            if where.applies_to(**place):
                method = replace(method, **where.set)
        return method

    def tried(self, method: Any) -> tuple[Method, ...]:
        """What the validation split picks from: that method alone where nothing is chosen."""
        return tuple(replace(method, **{name: value}) for name, values in self.choose.items() for value in values) or (method,)


def names_of_settings(family: type) -> tuple[str, ...]:
    """Of a task's class or a method's; a class without settings of its own has none."""
    return tuple(own.name for own in fields(family)) if is_dataclass(family) else ()


def _checked_settings(owner: str, settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    known = tuple(name for name in known if name not in ("k", "heads", "folder"))  # which the study says, or its store
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"{owner} has no setting {unknown[0]!r}; wanted some of {', '.join(known)}")


def made_tasks(tables: Any) -> dict[str, Task]:
    """The tasks of a study: each as it is, or of a table of its settings.

    Raises:
        ValueError: no tasks, or a table that no task can be made of.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise ValueError(f"got {tables!r}, wanted at least one task: a table [tasks.NAME] for each")
    return {name: task if isinstance(task, Task) else _made_task(name, task) for name, task in tables.items()}


def _made_task(name: str, table: Any) -> Task:
    if not isinstance(table, Mapping):
        raise ValueError(f"tasks.{name} = {table!r}; wanted a table [tasks.{name}] of its settings")
    settings = dict(table)
    family = settings.pop("task", name)
    if not isinstance(family, str):
        raise ValueError(f"tasks.{name}: task = {family!r}; wanted one of {', '.join(TASKS)}")
    if family in TASKS:
        _checked_settings(f"tasks.{name}: {family}", settings, names_of_settings(TASKS[family]))
    try:
        return task_named(family, **settings)
    except ValidationError as error:
        raise ValueError(said(error, inside=f"tasks.{name}")) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"tasks.{name}: {error}") from error


def made_methods(tables: Any) -> dict[str, Settings]:
    """The methods of a study: each as it is, or of a table of its settings.

    Raises:
        ValueError: a table that no method can be made of.
    """
    if not isinstance(tables, Mapping):
        raise ValueError(f"got {tables!r}, wanted a table [methods.NAME] for each method")
    return {name: method if isinstance(method, Settings) else _made_method(name, method) for name, method in tables.items()}


def _made_method(name: str, table: Any) -> Settings:
    if hasattr(table, "fit"):
        return Settings(table)
    if not isinstance(table, Mapping):
        raise ValueError(f"methods.{name} = {table!r}; wanted a table [methods.{name}] of its settings, or a method")
    settings = dict(table)
    extras = {extra: settings.pop(extra) for extra in ("choose", "where", "heads") if extra in settings}
    family = settings.pop("method", name)
    if not isinstance(family, str) or family not in METHODS:
        raise ValueError(f"methods.{name}: method = {family!r}; wanted one of {', '.join(METHODS)}")
    _checked_settings(f"methods.{name}: {family}", settings, names_of_settings(METHODS[family]))
    try:
        return Settings(METHODS[family](**settings), **extras)
    except ValidationError as error:
        raise ValueError(said(error, {"where": Where}, inside=f"methods.{name}")) from error
    except ValueError as error:
        raise ValueError(f"methods.{name}: {error}") from error


def said(error: ValidationError, owners: Mapping[str, type] | None = None, *, inside: str = "") -> str:
    """What pydantic found, with key and value.

    Args:
        error: what it raised.
        owners: dataclasses by the key that they are below, "" for the outermost; the keys that one has are named where one is
            unknown.
        inside: the key of what was being made.
    """
    parts: dict[str, None] = {}
    problems = error.errors()
    for found in problems:
        if found["type"] == "too_short" and any(_is_within(other["loc"], found["loc"]) for other in problems):
            continue  # pydantic counts what is valid of a list
        message = found["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list").replace("Tuple", "List")
        owner = (owners or {}).get(str(found["loc"][0]) if len(found["loc"]) > 1 else "")
        if found["type"] in ("unexpected_keyword_argument", "extra_forbidden") and owner is not None:
            message = f"unknown key; wanted some of {', '.join(owner.__dataclass_fields__)}"
        # Which of several types was tried is in the location too, behind the key and its index.
        key = ".".join(str(part) for part in found["loc"] if not str(part).startswith(("function-", "constrained-")))
        place = ".".join(filter(None, [inside, key]))
        if found["type"] == "missing":
            message = "wanted, and not there"
        elif found["type"] == "value_error":  # our own errors name what they are about
            place = inside
        else:
            place += f" = {found['input']!r}"
        parts[": ".join(filter(None, [place, message]))] = None
    return "; ".join(parts)


def _is_within(place: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other
