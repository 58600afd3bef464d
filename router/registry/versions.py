"""Order of versions, and hints for names that were mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

Key = tuple[object, ...]

_DIGITS = 18  # longer runs of digits are text: nobody counts that far
_LONGEST = 63
_MANY = 300  # names compared for one hint: it is made on the event loop


def version_key(version: str) -> Key:
    """Sort key by semantic versioning 2.0.0, section 11; what is no such version sorts below all that are.

    Leading "v", missing minor or patch numbers are tolerated; build metadata only breaks ties.

    >>> sorted(["1.10.0", "1.9", "1.10.0-rc.1", "latest"], key=version_key)
    ['latest', '1.9', '1.10.0-rc.1', '1.10.0']
    """
    body, _, build = version.partition("+")
    core, dash, prerelease = body.partition("-")
    numbers = core.removeprefix("v").split(".")
    if not all(_is_number(n) for n in numbers) or (dash and not prerelease):
        return (0, version)
    values = [int(n) for n in numbers]
    padded = (*values, *(0 for _ in range(3 - len(values))))
    return (1, padded, _prerelease_key(prerelease), build, version)


def _prerelease_key(prerelease: str) -> Key:
    if not prerelease:
        return (1,)
    parts = prerelease.split(".")
    return (0, tuple((0, int(p), "") if _is_number(p) else (1, 0, p) for p in parts))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def looks_like_version(text: str) -> bool:
    """Whether a folder of this name inside NAME/ is one of its versions."""
    return version_key(text)[0] == 1


def near(name: str, known: Iterable[str]) -> str:
    """The end of a not-found message: names close to `name`, or how many there are."""
    names = list(known)
    asked = name[:_LONGEST]
    likely = names if len(names) <= _MANY else [n for n in names if n[:1] == asked[:1]]
    close = difflib.get_close_matches(asked, likely[:_MANY], n=3, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(map(repr, close))}?"
    if not names:
        return "; no adapter is there yet"
    shown = ", ".join(sorted(names)[:5])
    return f"; known: {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def known_versions(versions: Iterable[str]) -> str:
    """The end of a not-found message: the versions there are, newest first, at most ten."""
    ordered = sorted(versions, key=version_key, reverse=True)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return f"; its versions: {', '.join(ordered[:10])}{more}"
