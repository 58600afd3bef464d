"""Pages of a list by an opaque token that is bound to the filters it was made with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from router.errors import FieldViolation, InvalidRequest
from router.types import AdapterInfo, AdapterRef

DEFAULT_SIZE, MAX_SIZE = 50, 500


class Named(Protocol):
    """What stands in a list by its name."""

    @property
    def name(self) -> str:
        """Unique in the list."""
        ...


T = TypeVar("T")
N = TypeVar("N", bound=Named)
Key = tuple[str, tuple[tuple[int, int, str], ...]]


def order(ref: AdapterRef) -> Key:
    """By name, then by version with numbers as numbers: 1.9 before 1.10."""
    parts = re.findall(r"\d+|\D+", ref.version)
    return ref.name, tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)


def page(
    infos: Iterable[AdapterInfo], size: int, token: str, filters: Sequence[str]
) -> tuple[list[AdapterInfo], str]:
    """The entries after `token`, and the token of the next page ('' on the last).

    Size 0 is 50, more than 500 is 500. Entries that come or go between pages shift nothing.
    """
    return _page(infos, lambda i: (i.ref.name, i.ref.version), _place, size, token, filters)


def page_by_name(entries: Iterable[N], size: int, token: str, what: str) -> tuple[list[N], str]:
    """The same of entries that have a name; `what` they are keeps their tokens apart from others'."""
    return _page(entries, lambda e: (e.name, ""), lambda key: key, size, token, (what,))


def _page(
    entries: Iterable[T],
    key: Callable[[T], tuple[str, str]],
    place: Callable[[tuple[str, str]], Any],
    size: int,
    token: str,
    filters: Sequence[str],
) -> tuple[list[T], str]:
    """`key` is what a token keeps of an entry, `place` where that stands in the list."""
    if size < 0:
        raise InvalidRequest([FieldViolation("page_size", "must be 0 or more")])
    most = min(size or DEFAULT_SIZE, MAX_SIZE)
    rows = sorted(entries, key=lambda entry: place(key(entry)))
    if token:
        after = place(_decode(token, filters))
        rows = [entry for entry in rows if place(key(entry)) > after]
    shown = rows[:most]
    return shown, _encode(key(shown[-1]), filters) if len(rows) > most else ""


def _place(key: tuple[str, str]) -> Key:
    return order(AdapterRef(*key))


def _scope(filters: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(filters)).encode()).hexdigest()[:16]


def _encode(key: tuple[str, str], filters: Sequence[str]) -> str:
    raw = json.dumps([_scope(filters), *key])
    return base64.urlsafe_b64encode(raw.encode()).decode()


def _decode(token: str, filters: Sequence[str]) -> tuple[str, str]:
    try:
        scope, name, version = json.loads(base64.b64decode(token.encode(), b"-_", validate=True))
        valid = scope == _scope(filters) and isinstance(name, str) and isinstance(version, str)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        valid = False
    if not valid:
        text = "is not a token of this list under these filters; start again without one"
        raise InvalidRequest([FieldViolation("page_token", text)])
    return name, version
