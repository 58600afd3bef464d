"""What people type into forms, as the fields of messages: every bad one is named, and nothing is guessed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from router.errors import Findings
from router.names import resource_of
from router.ports import AdapterRegistry
from router.types import AdapterState, Visible

MOST_OFFERED, MOST_LOOKED_AT = 400, 2000  # names in a list to pick from; others can be typed
MOST_OPTIONS = 100  # values to filter a list by


def number(found: Findings, field: str, typed: str) -> float | None:
    """None for nothing; what is no number is noted."""
    text = typed.strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found.add(field, f"must be a number, got {text[:40]!r}")
        return None
    return value


def whole(found: Findings, field: str, typed: str, bits: int = 32) -> int | None:
    """The same of a whole number that the message has room for."""
    text = typed.strip()
    if not text:
        return None
    digits = text.lstrip("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20 and text.count("-") < 2):
        found.add(field, f"must be a whole number, got {text[:40]!r}")
        return None
    value = int(text)
    if abs(value) >= 1 << (bits - 1):
        found.add(field, f"must be less than {1 << (bits - 1)}, got {value}")
        return None
    return value


def put(message: Any, **values: Any) -> None:
    """Set the fields that have a value."""
    for name, value in values.items():
        if value is not None:
            setattr(message, name, value)


def adapter_of(typed: str) -> str:
    """The resource that a name means: NAME, NAME@VERSION, `base`; '' for nothing and `auto`."""
    text = typed.strip()
    return resource_of(text) if text else ""


def offered(registry: AdapterRegistry, visible: Visible, *first: str, versions: bool = True) -> list[str]:
    """Names to pick from: `first`, then adapters and their versions, as many as a list can have."""
    names: list[str] = list(first)
    for info in islice(registry.listed(), MOST_LOOKED_AT):
        if len(names) >= MOST_OFFERED:
            break
        if info.state is not AdapterState.QUARANTINED and info.ref.name in visible:
            names += [info.ref.name] if info.default else []
            names += [f"{info.ref.name}@{info.ref.version}"] if versions else []
    return list(islice(names, MOST_OFFERED))


def options(values: Iterable[str], chosen: str) -> list[str]:
    """Values to choose from, the commonest if there are many, in alphabetical order."""
    common = {value for value, _ in Counter(filter(None, values)).most_common(MOST_OPTIONS)}
    return sorted(common | ({chosen} if chosen else set()))


def page_number(found: Findings, query: Mapping[str, str]) -> int:
    """The page of a list that an address names, from 1 on; what is none is noted."""
    page = query.get("page") or "1"
    if page.isascii() and page.isdecimal() and len(page) <= 6 and int(page):
        return int(page)
    found.add("page", "must be a number of a page, from 1 on")
    return 1


def texts(form: Mapping[str, str]) -> dict[str, str]:
    """What was typed; browsers send line ends of two characters."""
    return {name: value.replace("\r\n", "\n") for name, value in form.items()}
