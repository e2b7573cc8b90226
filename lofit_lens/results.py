"""Keep what an analysis found: one JSON file for each result, which is read back equal and drawn without a model."""

import json
from pathlib import Path
from typing import Any, TypeVar, get_args, overload

from lofit_lens import analysis
from lofit_lens.files import write_text_atomically
from lofit_lens.heads import HeadScores
from lofit_lens.outcomes import Evaluation
from lofit_lens.plain import from_plain, to_plain
from lofit_lens.side_effects import SideEffects

Result = (
    HeadScores
    | Evaluation
    | SideEffects
    | analysis.AttentionPatterns
    | analysis.DoseResponse
    | analysis.HeadOverlap
    | analysis.HeadTransfer
    | analysis.Mixture
    | analysis.OffsetAttribution
    | analysis.OffsetGeometry
    | analysis.OffsetPlane
    | analysis.OffsetReading
    | analysis.Sweep
    | analysis.TokenEffects
    | analysis.TransferTable
)
KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Result)}
SCHEMA = 1

Kind = TypeVar("Kind")


def save_result(result: Result, path: str | Path) -> Path:
    """Write a result as one JSON file, whole or not at all.

    Raises:
        ValueError: no result of an analysis.
        OSError: the file cannot be written.
    """
    if type(result).__name__ not in KINDS:
        raise ValueError(f"got a {type(result).__name__}, wanted a result: one of {', '.join(KINDS)}")
    stored = {"result": type(result).__name__, "schema": SCHEMA, **to_plain(result)}
    write_text_atomically(path, json.dumps(stored, separators=(",", ":"), allow_nan=False) + "\n")
    return Path(path)


@overload
def load_result(path: str | Path) -> Result: ...


@overload
def load_result(path: str | Path, kind: type[Kind]) -> Kind: ...


def load_result(path: str | Path, kind: type[Any] = object) -> Any:
    """Read a result that `save_result` has written.

    Args:
        path: the file.
        kind: what it shall be, such as `HeadScores`; any by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no result, of another kind, or written by a newer version.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        stored = json.loads(text)
        name, schema = stored["result"], stored["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no result ({error!r}); wanted a file that save_result has written") from error
    if name not in KINDS or schema > SCHEMA:
        raise ValueError(
            f"{path} holds a {name!r} of schema {schema}, wanted one of {', '.join(KINDS)} of schema {SCHEMA}; a newer "
            "lofit-lens may have written it: upgrade"
        )
    if not issubclass(KINDS[name], kind):
        raise ValueError(f"{path} holds a {name}, wanted a {kind.__name__}")
    try:
        return from_plain(KINDS[name], stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); save the result again") from error
