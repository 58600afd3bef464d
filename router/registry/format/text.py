"""Text from untrusted files, made fit for messages and logs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 80


def show(value: object, longest: int = LONGEST) -> str:
    """`value` on one line: control characters and lone surrogates escaped, cut to `longest`.

    >>> show("a\\nb")
    "'a\\\\nb'"
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 256:
        return "a huge number"  # str() of it takes quadratic time, or raises
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'table'} of {len(value)}"
    cut = value[: longest + 1] if isinstance(value, str) else value
    text = repr(cut).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest + 2 else text[:longest] + "…"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names, and how many more there are."""
    listed = list(names)
    head = ", ".join(show(n, 120) for n in listed[:most])
    return head if len(listed) <= most else f"{head} and {len(listed) - most} more"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing if no known name is near."""
    found = difflib.get_close_matches(name[:LONGEST], list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
