"""Rows of JSON: a list of objects, or one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from router.errors import ConfigError


def read_json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE:LINE and fields of every object; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _fields(_parse(line, place), place)


def read_json(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE[PLACE] and fields of every object of a list."""
    value = _parse(text, name)
    if not isinstance(value, list):
        raise ConfigError(f"{name} holds no list of objects: [{{...}}, {{...}}]")
    for number, item in enumerate(value):
        place = f"{name}[{number}]"
        yield place, _fields(item, place)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error


def _fields(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is no object: {{...}}")
    return {name: _as_text(item, name, place) for name, item in value.items()}


def _as_text(value: Any, name: str, place: str) -> str:
    """Texts and numbers as they are, null as nothing; lists and objects are kept as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {name!r} holds half a character (a lone surrogate)") from error
    return text
