"""Dataclasses as plain JSON values, and back: what a file holds and a package can read without running anything of it.

Fields stand as they are; a tensor is its dtype and nested lists, a table its dtypes and columns, a mapping whose keys are no
text a list of pairs, and NaN (a layer without attention, an empty cell) null.
"""

import collections.abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd
import torch
from jaxtyping import AbstractArray
from torch import Tensor


def to_plain(value: Any) -> Any:
    """A dataclass, or what may be in one: tensors, tables, tuples, mappings, numbers and texts.

    Raises:
        ValueError: an infinite number.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else _null_for(value)
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "values": to_plain(value.tolist())}
    if isinstance(value, pd.DataFrame):
        dtypes = {str(name): str(dtype) for name, dtype in value.dtypes.items()}
        return {"dtypes": dtypes, "columns": {str(name): to_plain(value[name].tolist()) for name in value}}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: to_plain(one) for key, one in value.items()}
        return [[to_plain(key), to_plain(one)] for key, one in value.items()]
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _null_for(value: float) -> None:
    if math.isinf(value):
        raise ValueError(f"got {value}, wanted finite numbers, or NaN for what is not there")


def from_plain(kind: Any, stored: Any) -> Any:
    """The value of that kind, a dataclass or what its fields are annotated with, that `to_plain` made this of.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not of that kind.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is float:
        return math.nan if stored is None else float(stored)
    if origin is tuple:
        kinds = arguments[:1] * len(stored) if arguments[-1] is ... else arguments
        return tuple(from_plain(one, value) for one, value in zip(kinds, stored, strict=True))
    if origin is collections.abc.Mapping:
        pairs = stored.items() if isinstance(stored, dict) else stored
        return {from_plain(arguments[0], key): from_plain(arguments[1], value) for key, value in pairs}
    if not isinstance(kind, type):
        return stored
    if issubclass(kind, AbstractArray):
        return torch.tensor(_with_nan(stored["values"]), dtype=getattr(torch, stored["dtype"]))
    if issubclass(kind, pd.DataFrame):
        return pd.DataFrame(stored["columns"]).astype(stored["dtypes"])
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        # What an older version did not write yet is at its default, if there is one.
        names = [field.name for field in dataclasses.fields(kind) if field.name in stored or not _has_default(field)]
        return kind(**{name: from_plain(hints[name], stored[name]) for name in names})
    if issubclass(kind, tuple):  # a NamedTuple
        return kind(*(from_plain(one, value) for one, value in zip(get_type_hints(kind).values(), stored, strict=True)))
    return stored


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _with_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_with_nan(value) for value in values]
    return math.nan if values is None else values
