"""Pages of a list by an opaque token that is bound to the filters it was made with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from router.errors import FieldViolation, InvalidRequest
from router.types import AdapterInfo, AdapterRef

DEFAULT_SIZE, MAX_SIZE = 50, 500
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
    if size < 0:
        raise InvalidRequest([FieldViolation("page_size", "must be 0 or more")])
    most = min(size or DEFAULT_SIZE, MAX_SIZE)
    rows = sorted(infos, key=lambda info: order(info.ref))
    if token:
        after = order(_decode(token, filters))
        rows = [info for info in rows if order(info.ref) > after]
    shown = rows[:most]
    return shown, _encode(shown[-1].ref, filters) if len(rows) > most else ""


def _scope(filters: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(filters)).encode()).hexdigest()[:16]


def _encode(ref: AdapterRef, filters: Sequence[str]) -> str:
    raw = json.dumps([_scope(filters), ref.name, ref.version])
    return base64.urlsafe_b64encode(raw.encode()).decode()


def _decode(token: str, filters: Sequence[str]) -> AdapterRef:
    try:
        scope, name, version = json.loads(base64.b64decode(token.encode(), b"-_", validate=True))
        valid = scope == _scope(filters) and isinstance(name, str) and isinstance(version, str)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        valid = False
    if not valid:
        text = "is not a token of this list under these filters; start again without one"
        raise InvalidRequest([FieldViolation("page_token", text)])
    return AdapterRef(name, version)
