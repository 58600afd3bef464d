"""`adapters validate`: everything that is wrong with a folder, at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.engine.base import BaseInfo
from router.registry.format.examine import Examination, Rules
from router.registry.format.findings import Finding
from router.registry.format.inspection import Inspection

DEFAULT_MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `digest` is empty unless the folder is accepted and a base was given."""

    folder: str
    inspection: Inspection
    base_checked: bool
    values_checked: bool

    @property
    def ok(self) -> bool:
        """Whether the adapter can be served; the command's exit status is 0 then, else 1."""
        return self.inspection.ok

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Refusals and notes."""
        return self.inspection.findings

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, with stable codes."""
        seen = self.inspection
        return {
            "folder": self.folder,
            "ok": self.ok,
            "name": seen.name,
            "version": seen.version,
            "base_model": seen.base_model,
            "base_checked": self.base_checked,
            "values_checked": self.values_checked,
            "rank": seen.rank,
            "target_modules": list(seen.target_modules),
            "size_bytes": seen.size_bytes,
            "findings": [
                {"code": str(f.code), "severity": str(f.severity), "message": f.message, "where": f.where}
                for f in seen.findings
            ],
            "sites": [{"site": s.site, "rank": s.rank, "scaling": s.scaling} for s in seen.sites],
        }


def validate_folder(
    folder: Path,
    base: BaseInfo | None,
    *,
    max_rank: int = DEFAULT_MAX_RANK,
    ignore_fields: Collection[str] = (),
) -> Report:
    """Check a folder completely, weights included. Never raises for what is in it.

    Without a base, modules and shapes are not compared with one (the report says so).
    """
    exam = Examination.of(folder.absolute(), Rules(base, max_rank, ignore_fields), read_weights=True)
    inspection = exam.inspection()
    return Report(
        folder=str(folder),
        inspection=inspection,
        base_checked=base is not None,
        values_checked=exam.values_checked,
    )
