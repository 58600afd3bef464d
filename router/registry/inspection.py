"""What an examination of an adapter folder concluded."""

from __future__ import annotations

from dataclasses import dataclass

from router.registry.findings import Finding, Severity
from router.registry.manifest import Manifest
from router.registry.probes import Probe
from router.registry.shapes import SitePlan


@dataclass(frozen=True, slots=True)
class Inspection:
    """An adapter folder without its weights."""

    name: str
    version: str
    manifest: Manifest
    rank: int  # the largest over all sites
    target_modules: tuple[str, ...]  # last parts of the names of the sites with weights
    size_bytes: int  # of the files that count
    findings: tuple[Finding, ...]
    fingerprint: str  # changes when a file that counts changes; says nothing of contents
    base_model: str = ""  # what it says it was trained on
    sites: tuple[SitePlan, ...] = ()
    probes: tuple[Probe, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was refused."""
        return not self.refusals

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """What stands in the way."""
        return tuple(f for f in self.findings if f.severity is Severity.REFUSE)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was normalised or ignored, for AdapterInfo.notes."""
        return tuple(str(f) for f in self.findings if f.severity is Severity.NOTE)

    @property
    def error(self) -> str:
        """All refusals in one text, for AdapterInfo.error; empty if there are none."""
        return "; ".join(str(f) for f in self.refusals)
