"""Adapter folders as the rest of the registry uses them: look without weights, or read everything once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from router.engine.base import AdapterArtifact, BaseInfo, SiteDelta
from router.errors import AdapterRejected, ResourceExhausted
from router.registry.format.checks import EqualsBase
from router.registry.format.examine import Examination, Inspection, Rules
from router.registry.format.folder import OURS
from router.registry.format.safetensors_header import WEIGHTS
from router.registry.format.tensors import tensor_data

__all__ = ["EqualsBase", "Inspection", "digest_of", "inspect_folder", "read_artifact"]


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
