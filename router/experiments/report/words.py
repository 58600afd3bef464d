"""Times, shares and digests in words."""

from __future__ import annotations

LENGTHS = (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))


def span(seconds: float) -> str:
    """A length of time.

    >>> span(86400), span(5400), span(2.5)
    ('1 day', '1.5 hours', '2.5 seconds')
    """
    unit, length = next(((u, n) for u, n in LENGTHS if seconds >= n), LENGTHS[-1])
    count = seconds / length
    return f"{count:.3g} {unit}{'' if count == 1 else 's'}"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "unit"), count(2000, "unit")
    ('1 unit', '2,000 units')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(digest: str) -> str:
    """The part of a digest that people compare."""
    return digest[:12] if digest else "none"
