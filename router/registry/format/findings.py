"""What a check of an adapter folder says: refusals and notes, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

MOST = 100


class Severity(StrEnum):
    """What a finding means for the adapter."""

    NOTE = "note"  # accepted; said so that nothing is normalised or ignored in silence
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `code` is one of codes.Code; `where` a file, field or tensor."""

    code: str
    severity: Severity
    message: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(slots=True)
class Findings:
    """Collects findings; keeps the first MOST of them, a hostile file could make millions."""

    items: list[Finding] = field(default_factory=list)

    def note(self, code: str, message: str, where: str = "") -> None:
        """Add something that does not stand in the way."""
        self._add(Finding(code, Severity.NOTE, message, where))

    def refuse(self, code: str, message: str, where: str = "") -> None:
        """Add a reason why the adapter cannot be served."""
        self._add(Finding(code, Severity.REFUSE, message, where))

    def _add(self, finding: Finding) -> None:
        if len(self.items) < MOST or (finding.severity is Severity.REFUSE and not self.refused):
            self.items.append(finding)

    @property
    def refusals(self) -> int:
        """How many of them are refusals."""
        return sum(f.severity is Severity.REFUSE for f in self.items)

    @property
    def refused(self) -> bool:
        """Whether any of them is a refusal."""
        return self.refusals > 0

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)
