"""What the caller names: an adapter, or the base."""

from __future__ import annotations

import re

from router.errors import FieldViolation, InvalidRequest
from router.names import BASE

_RESOURCE = re.compile(
    r"adapters/([a-z0-9][a-z0-9._-]{0,62})(?:/versions/([0-9A-Za-z][0-9A-Za-z.+_-]{0,62}))?"
)


def is_base(resource: str) -> bool:
    """Whether it names the base: `base`, or `adapters/base` where only adapters can be written."""
    return resource in (BASE, f"adapters/{BASE}")


def parse_adapter(resource: str, field: str = "routing.adapter") -> tuple[str, str]:
    """Name and version ("" if not given) of a resource name. Raises InvalidRequest naming `field`."""
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        raise InvalidRequest(
            [
                FieldViolation(
                    field, "must be base, adapters/NAME or adapters/NAME/versions/VERSION, NAME in lower case"
                )
            ]
        )
    return match[1], match[2] or ""
