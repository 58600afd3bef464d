"""Feedback of a file: JSON lines, one record for each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.feedback.model import VERDICTS, Feedback


def read_records(path: Path, adapter: str, since: float = 0.0) -> list[Feedback]:
    """The records of `adapter` that are newer than `since`, in the order of the file.

    Raises ConfigError naming the line of a record that is not understood.
    """
    return [one for one in _records(path) if one.adapter == adapter and one.time > since]


def _records(path: Path) -> Iterator[Feedback]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _record(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{path.name}:{number} is no feedback: {error}") from error


def _record(value: Any) -> Feedback:
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    texts = {name: _text(value, name) for name in ("response_id", "tenant", "unit", "adapter", "version")}
    if not texts["adapter"]:
        raise ValueError("'adapter' is missing")
    if value.get("verdict") not in VERDICTS:
        raise ValueError(f"'verdict' must be one of {', '.join(VERDICTS)}")
    return Feedback(
        **texts,
        time=float(value.get("time", 0.0)),
        verdict=value["verdict"],
        messages=tuple((str(role), str(text)) for role, text in value.get("messages", ())),
        answer=_text(value, "answer") or None,
        corrected=_text(value, "corrected") or None,
    )


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name!r} must be a text")
    return text or ""
