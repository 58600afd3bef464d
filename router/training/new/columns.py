"""Which column is asked, which is the answer, and which keeps rows together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.errors import ConfigError

# Pairs that data sets on the Hugging Face hub commonly use.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
    ("source", "target"),
    ("text", "label"),
    ("text", "summary"),
    ("document", "summary"),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; `group` is empty where every row stands for itself."""

    prompt: str
    response: str
    group: str = ""


def choose_columns(names: Sequence[str], prompt: str = "", response: str = "", group: str = "") -> Columns:
    """What is said wins; else a usual pair of names, else the two columns there are.

    Raises ConfigError with all columns when they cannot be guessed or do not exist.
    """
    for option, name in (("prompt", prompt), ("response", response), ("group", group)):
        if name and name not in names:
            raise ConfigError(f"--{option}-column {name!r} is not in the data: {_listed(names)}")
    left = [name for name in names if name not in (prompt, response, group)]
    if not prompt and not response:
        prompt, response = _pair(left)
    elif len(left) == 1:
        prompt, response = prompt or left[0], response or left[0]
    if not prompt or not response:
        raise ConfigError(
            "which column is the question and which the answer? say --prompt-column NAME and "
            f"--response-column NAME; {_listed(names)}"
        )
    if len({prompt, response, group}) < 3:
        raise ConfigError("prompt, response and group must be different columns")
    return Columns(prompt, response, group)


def _pair(names: Sequence[str]) -> tuple[str, str]:
    lowered = {name.lower(): name for name in names}
    for prompt, response in PAIRS:
        if prompt in lowered and response in lowered:
            return lowered[prompt], lowered[response]
    return (names[0], names[1]) if len(names) == 2 else ("", "")


def _listed(names: Sequence[str]) -> str:
    return "the columns are " + ", ".join(map(repr, names)) + " (of a CSV file, the first line names them)"
