"""Adapter folders as others use them: looked at without weights, read once and whole, or validated."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.engine.base import AdapterArtifact, BaseInfo, SiteDelta
from router.errors import AdapterRejected, ResourceExhausted
from router.registry.format.checks import EqualsBase
from router.registry.format.examine import Examination, Inspection, Rules
from router.registry.format.findings import Finding
from router.registry.format.folder import OURS, WEIGHTS
from router.registry.format.tensors import tensor_data

DEFAULT_MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class Validation:
    """What `adapters validate` found."""

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
        """As plain values, with stable codes."""
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


def inspect_folder(
    folder: Path,
    base: BaseInfo | None,
    *,
    max_rank: int,
    ignore_fields: Collection[str] = (),
    equals_base: EqualsBase | None = None,
) -> Inspection:
    """Check manifest, configuration and tensor names and shapes; no weights are read.

    Never raises for what is in the folder, or if it vanishes: all problems are among the findings. Without
    a base, modules and shapes are not compared. With `equals_base`, whole embedding matrices are left to
    `read_artifact`. Takes milliseconds; blocks on the disk, so call it from a worker thread.
    """
    rules = Rules(base, max_rank, ignore_fields, equals_base)
    return Examination.of(folder, rules, read_weights=False).inspection()


def read_artifact(
    folder: Path,
    base: BaseInfo,
    *,
    max_rank: int,
    ignore_fields: Collection[str] = (),
    equals_base: EqualsBase | None = None,
) -> tuple[AdapterArtifact, Inspection]:
    """Read every file once into memory, check it, and parse it from the very bytes that are hashed.

    Raises AdapterRejected with all refusals, ResourceExhausted if the weights do not fit into memory. The
    tensors are views into one buffer that nothing else refers to. Blocks: call it from a worker thread.
    """
    rules = Rules(base, max_rank, ignore_fields, equals_base)
    try:
        exam = Examination.of(folder, rules, read_weights=True)
    except MemoryError:
        raise ResourceExhausted(f"no memory to read adapter {folder.name!r}") from None
    inspection = exam.inspection()
    if not inspection.ok:
        codes = ",".join(sorted({f.code for f in inspection.refusals}))
        raise AdapterRejected(f"adapter {inspection.name!r} is refused: {inspection.error}", codes=codes)
    artifact = AdapterArtifact(
        name=inspection.name,
        version=inspection.version,
        digest=digest_of(exam.files),
        sites=_sites(exam),
    )
    weights = hashlib.sha256(exam.files[WEIGHTS]).hexdigest()
    return artifact, replace(inspection, weights_sha256=weights)


def validate_folder(
    folder: Path,
    base: BaseInfo | None,
    *,
    max_rank: int = DEFAULT_MAX_RANK,
    ignore_fields: Collection[str] = (),
) -> Validation:
    """Check a folder completely, weights included. Never raises for what is in it.

    Without a base, modules and shapes are not compared with one (the report says so).
    """
    exam = Examination.of(folder.absolute(), Rules(base, max_rank, ignore_fields), read_weights=True)
    inspection = exam.inspection()
    return Validation(
        folder=str(folder),
        inspection=inspection,
        base_checked=base is not None,
        values_checked=exam.values_checked,
    )


def digest_of(files: Mapping[str, bytes | memoryview]) -> str:
    """sha256 over name, length and bytes of the files that make an adapter, in a fixed order.

    Each file that is there adds its name in ASCII, a zero byte, its length as 8 bytes little-endian, and
    its contents; the order is adapter.toml, adapter_config.json, adapter_model.safetensors, probes.jsonl.
    """
    digest = hashlib.sha256()
    for name in OURS:
        if name in files:
            digest.update(name.encode() + b"\0" + len(files[name]).to_bytes(8, "little"))
            digest.update(files[name])
    return digest.hexdigest()


def _sites(exam: Examination) -> Mapping[str, SiteDelta]:
    data = memoryview(exam.files[WEIGHTS])
    pairs = exam.tensors.pairs
    return {
        plan.site: SiteDelta(
            a=tensor_data(pairs[plan.site].a, data),
            b=tensor_data(pairs[plan.site].b, data),
            scaling=plan.scaling,
        )
        for plan in exam.plans
    }
