"""Collects every bad field of a request, so that the caller sees all of them at once."""

from __future__ import annotations

from router.errors import FieldViolation, InvalidRequest

MOST = 32


class Findings:
    """Violations in the order they were found."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Note a bad field; past 32 the rest is left out, which the last entry says."""
        if len(self._found) < MOST:
            self._found.append(FieldViolation(field, description))
        elif len(self._found) == MOST:
            self._found.append(FieldViolation("", "and more"))

    def check(self) -> None:
        """Raise InvalidRequest if anything was found."""
        if self._found:
            raise InvalidRequest(self._found)

    def text(self, field: str, value: str, most: int) -> str:
        """`value`, noted if it has more than `most` bytes."""
        if len(value) > most or len(value.encode()) > most:
            self.add(field, f"must have at most {most} bytes")
        return value
