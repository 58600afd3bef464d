"""Resource names of adapters: `adapters/NAME` and `adapters/NAME/versions/VERSION`."""

from __future__ import annotations

import re

from router.errors import FieldViolation, InvalidRequest
from router.types import AdapterRef

AUTO = "auto"  # the model that means: whoever routing picks
BASE = "base"  # asks for the base, as `base` or `adapters/base`: no adapter is called so
_ID = r"[^/\s\x00-\x1f\x7f]{1,63}"
_ADAPTER = re.compile(rf"adapters/({_ID})(?:/versions/({_ID}))?")
ADAPTER_FORM = "adapters/NAME or adapters/NAME/versions/VERSION"
VERSION_FORM = "adapters/NAME/versions/VERSION"


def split_adapter(resource: str) -> tuple[str, str] | None:
    """(name, version) with version '' where none is given; None if `resource` is no such name."""
    match = _ADAPTER.fullmatch(resource)
    return (match[1], match[2] or "") if match else None


def parse_adapter(resource: str, field: str = "name") -> tuple[str, str]:
    """Like `split_adapter`; raises InvalidRequest naming `field`."""
    parts = split_adapter(resource)
    if parts is None:
        raise InvalidRequest([FieldViolation(field, f"must be {ADAPTER_FORM}")])
    return parts


def parse_version(resource: str, field: str = "name") -> AdapterRef:
    """A name that must give a version; raises InvalidRequest naming `field`."""
    name, version = split_adapter(resource) or ("", "")
    if not version:
        raise InvalidRequest([FieldViolation(field, f"must be {VERSION_FORM}")])
    return AdapterRef(name, version)
