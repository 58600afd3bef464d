"""JSON and TOML from strangers: what is ambiguous, or would keep a parser busy, is refused.

JSON is that of RFC 8259: UTF-8, no duplicate names, no NaN, finite numbers, bounded depth. TOML is looked at
before the parser sees it: tomllib takes time quadratic in the number of parts of a dotted key, recurses into
nested arrays, and reads escapes one by one, so a file of 200 KiB keeps it busy for minutes. A manifest needs
little of any of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from router.registry.format import limits
from router.registry.format.text import show

DOTS, DEPTH, ESCAPES = 8, 16, 20_000  # in TOML

# Comments and the four kinds of strings; an unclosed one runs to the end of its line or of the file.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*",
    re.DOTALL,
)
_STRUCTURE = re.compile(r"[\[{]|[\]}]")
_BORDER = re.compile(r"[,=\[\]{}\n]")


class JsonError(ValueError):
    """The text is not strict JSON; the message says why and is fit for a user."""


def load_json(data: bytes) -> Any:
    """Parse JSON. Raises JsonError and nothing else."""
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    if parts > limits.JSON_PARTS:
        raise JsonError(f"has {parts} parts, at most {limits.JSON_PARTS} are allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
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


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"{show(twice)} appears twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{show(text)} is out of range")
    return value


def toml_too_complex(text: str) -> str:
    """Why the TOML `text` is not worth parsing, or an empty string."""
    if text.count("\\") > ESCAPES:
        return f"has more than {ESCAPES} backslashes"
    bare = _OPAQUE.sub("", text)
    if any(piece.count(".") > DOTS for piece in _BORDER.split(bare)):
        return f"a key has more than {DOTS} dots"
    depth = 0
    for mark in _STRUCTURE.findall(bare):
        depth += 1 if mark in "[{" else -1
        if depth > DEPTH:
            return f"brackets are nested more than {DEPTH} deep"
    return ""
