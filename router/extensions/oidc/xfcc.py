"""`x-forwarded-client-cert`, as Envoy writes it: the names that a proxy in front found in a certificate.

One element for each proxy on the way, by commas, the nearest last; in it pairs of key and value, by
semicolons. A value may stand in double quotes; in these a backslash takes what follows as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HEADER = "x-forwarded-client-cert"
NAMES = ("uri", "dns")  # as kinds of names in router/access/certificates.py
# After a closing quote nothing but the next pair may come, so a quote that a client left open ahead of the
# proxy's element cannot swallow a part of it.
_PAIR = re.compile(r""" *([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;]*))([,;]|\Z)""")
_ESCAPED = re.compile(r"\\(.)")


def forwarded_names(headers: Sequence[str]) -> tuple[str, ...]:
    """The names (SANs) of the last element, which the nearest proxy wrote, with their kinds, as `dns:NAME`.

    Raises ValueError for a malformed header, and for several headers: any of them may be the proxy's.
    """
    if len(headers) != 1 or not headers[0].isascii() or not headers[0].isprintable():
        raise ValueError(f"{len(headers)} headers, or odd characters")
    header, names = headers[0], list[str]()
    at, before = 0, ","
    while before:
        pair = _PAIR.match(header, at)
        if pair is None:
            raise ValueError(f"no pair of key and value at character {at}")
        if before == ",":
            names.clear()
        if (kind := pair[1].lower()) in NAMES and (value := _value(pair)):
            names.append(f"{kind}:{value}")
        at, before = pair.end(), pair[4]
    return tuple(names)


def _value(pair: re.Match[str]) -> str:
    return _ESCAPED.sub(r"\1", pair[2]) if pair[2] is not None else pair[3]
