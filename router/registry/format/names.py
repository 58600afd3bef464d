"""Names and versions of adapters: what is allowed, and what a folder's name becomes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from heapq import nsmallest

from router.names import BASE

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,62}")
DEFAULT_VERSION = "0"
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, and not 'base'"
LABEL_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
VERSION_RULE = "1 to 63 of letters, digits, '.', '+', '-', starting with a letter or digit"


def is_name(text: str) -> bool:
    """Whether `text` may name an adapter; `base` asks for the base."""
    return is_label(text) and text != BASE


def is_label(text: str) -> bool:
    """Whether `text` may be a domain or a task."""
    return NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` may be a version."""
    return VERSION.fullmatch(text) is not None


# -- order of versions, and hints for names that were mistyped

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


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of a not-found message: names close to `name`, or how many there are."""
    names = list(known)
    asked = name[:_LONGEST]
    likely = names if len(names) <= _MANY else [n for n in names if n[:1] == asked[:1]]
    close = difflib.get_close_matches(asked, likely[:_MANY], n=3, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(map(repr, close))}?"
    if not names:
        return "; no adapter is there yet"
    shown = ", ".join(nsmallest(5, names))
    return f"; known: {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def known_versions(versions: Iterable[str]) -> str:
    """The end of a not-found message: the versions there are, newest first, at most ten."""
    ordered = sorted(versions, key=version_key, reverse=True)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return f"; its versions: {', '.join(ordered[:10])}{more}"
