"""Adapters named by the caller."""

from __future__ import annotations

import re

from router.errors import FieldViolation, InvalidRequest

_RESOURCE = re.compile(
    r"adapters/([a-z0-9][a-z0-9._-]{0,62})(?:/versions/([0-9A-Za-z][0-9A-Za-z.+_-]{0,62}))?"
)


def parse_adapter(resource: str, field: str = "routing.adapter") -> tuple[str, str]:
    """Name and version ("" if not given) of a resource name. Raises InvalidRequest naming `field`."""
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        raise InvalidRequest(
            [
                FieldViolation(
                    field, "must be adapters/NAME or adapters/NAME/versions/VERSION, NAME in lower case"
                )
            ]
        )
    return match[1], match[2] or ""
