"""General text: paragraphs that belong to no task, read token by token."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from router.engine.base import Prompt
from router.errors import ConfigError
from router.training.batch import Example
from router.training.rendering import Rendering

GENERAL = Path("data") / "general.jsonl.gz"  # beside the recipes


def paragraphs(file: Path) -> list[str]:
    """The `text` of every row of a gzipped JSON-lines file. Raises ConfigError naming file and line."""
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    found = [_text(line, f"{file.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{file} holds no paragraph")
    return found


def whole_text(rendering: Rendering, text: str) -> Example:
    """All tokens of a text but the first, to be predicted from those before them; no chat template."""
    tokens = rendering.encoder.encode(Prompt(raw=text))
    if len(tokens) < 2:
        raise ConfigError(f"too short to be judged: {text!r}; a paragraph needs two tokens or more")
    return Example(tuple(tokens[:1]), tuple(tokens[1:]))


def _text(line: str, place: str) -> str:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place} has no text in 'text'")
    return text
