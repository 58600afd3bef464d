"""JSON as RFC 8259 has it: UTF-8, no duplicate names, no NaN, finite numbers, bounded depth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from router.registry.format import limits
from router.registry.format.text import show


class JsonError(ValueError):
    """The text is not strict JSON; the message says why and is fit for a user."""


def loads(data: bytes) -> Any:
    """Parse `data`. Raises JsonError and nothing else."""
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    if parts > limits.JSON_PARTS:
        raise JsonError(f"has {parts} parts, at most {limits.JSON_PARTS} are allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except JsonError:
        raise
    except ValueError:  # int() of more digits than Python converts
        raise JsonError("a number has too many digits") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"{show(twice)} appears twice")
    return result


def _constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{show(text)} is out of range")
    return value
