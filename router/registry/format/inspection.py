"""What an examination of an adapter folder concluded."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.registry.format.findings import Finding, Severity
from router.registry.format.manifest import Manifest
from router.registry.format.probes import Probe
from router.registry.format.shapes import SitePlan

LONGEST_ERROR = 3_000  # characters; trailers of a gRPC answer are limited to 8 KiB by default


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
    weights_sha256: str = field(default="", compare=False)  # hex; empty where the weights were not read

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
        """The refusals in one text that fits into a gRPC error; empty if there are none."""
        text = "; ".join(str(f) for f in self.refusals)
        return (
            text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}… ({len(self.refusals)} in all)"
        )
