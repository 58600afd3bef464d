"""An adapter folder as others use it: looked at without weights, read once and whole, or validated.

All three are one examination: every check, in the order in which its inputs become known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.engine.base import AdapterArtifact, BaseInfo, SiteDelta
from router.errors import AdapterRejected, ResourceExhausted
from router.registry.format import limits
from router.registry.format.checks import (
    EqualsBase,
    SitePlan,
    check_base,
    check_targets,
    check_vocabulary,
    drop_equal,
    plan_sites,
    refuse_full,
)
from router.registry.format.findings import Code, Finding, Findings, Severity
from router.registry.format.folder import (
    CONFIG,
    MANIFEST,
    OURS,
    PROBES,
    WEIGHTS,
    Folder,
    FolderError,
    Layout,
    OpenFile,
    find_layout,
)
from router.registry.format.lora_config import LoraSettings, parse_lora_config
from router.registry.format.manifest import Manifest, parse_manifest
from router.registry.format.names import name_from_folder
from router.registry.format.probes import Probe, parse_probes
from router.registry.format.safetensors_header import (
    LENGTH_BYTES,
    Header,
    header_length,
    parse_header,
)
from router.registry.format.tensors import SiteTensors, check_values, match_sites, tensor_data

DEFAULT_MAX_RANK = 64
SPARE_TENSORS = 64  # whole matrices that may be saved along
LONGEST_ERROR = 3_000  # characters; trailers of a gRPC answer are limited to 8 KiB by default


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an examination concluded: an adapter folder without its weights."""

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


@dataclass(frozen=True, slots=True)
class Rules:
    """What a folder is examined against."""

    base: BaseInfo | None
    max_rank: int
    ignore_fields: Collection[str] = ()
    equals_base: EqualsBase | None = None


@dataclass(slots=True)
class Examination:
    """One pass over a folder. The weights are read only if asked for and nothing was refused before."""

    rules: Rules
    manifest: Manifest
    found: Findings = field(default_factory=Findings)
    settings: LoraSettings | None = None
    tensors: SiteTensors = field(default_factory=SiteTensors)
    plans: tuple[SitePlan, ...] = ()
    probes: tuple[Probe, ...] = ()
    files: dict[str, bytes | memoryview] = field(default_factory=dict)
    size_bytes: int = 0
    fingerprint: str = ""

    @classmethod
    def of(cls, path: Path, rules: Rules, *, read_weights: bool) -> Examination:
        """Examine the folder at `path`. Raises nothing but MemoryError."""
        exam = cls(rules, Manifest(name=name_from_folder(path.name)))
        try:
            with ExitStack() as opened:
                exam._run(opened.enter_context(Folder.open(path)), opened, read_weights)
        except FolderError as error:
            exam.found.refuse(error.code, error.message, error.where)
        return exam

    def _run(self, folder: Folder, opened: ExitStack, read_weights: bool) -> None:
        layout = find_layout(folder, self.found)
        inner = opened.enter_context(folder.subfolder(layout.nested)) if layout.nested else folder
        ours = [e for e in (layout.entries.get(n) or layout.inner.get(n) for n in OURS) if e is not None]
        self.size_bytes = sum(entry.size for entry in ours)
        self.fingerprint = layout.fingerprint()
        self._manifest(self._small(MANIFEST, limits.MANIFEST_BYTES, folder, inner, layout), folder.name)
        self._probes(self._small(PROBES, limits.PROBES_BYTES, folder, inner, layout))
        self._config(self._small(CONFIG, limits.CONFIG_BYTES, inner, inner, layout))
        if self.rules.base is not None:
            check_vocabulary(inner, self.rules.base.vocab_size, self.found)
        if WEIGHTS in layout.inner:
            self._weights(inner, read_weights)

    def _small(self, name: str, most: int, first: Folder, second: Folder, layout: Layout) -> bytes | None:
        """A file from the folder, else from the nested one; None if it is absent or refused."""
        source = first if name in layout.entries else second
        if name not in layout.entries and name not in layout.inner:
            return None
        try:
            self.files[name] = data = source.read(name, most)
        except FolderError as error:
            self.found.refuse(error.code, error.message, error.where)
            return None
        return data

    def _manifest(self, data: bytes | None, folder_name: str) -> None:
        self.manifest, findings = parse_manifest(data, folder_name)
        self.found.items.extend(findings)

    def _probes(self, data: bytes | None) -> None:
        if data is not None:
            self.probes, findings = parse_probes(data)
            self.found.items.extend(findings)

    def _config(self, data: bytes | None) -> None:
        if data is not None:
            self.settings, findings = parse_lora_config(data, self.rules.ignore_fields)
            self.found.items.extend(findings)

    def _weights(self, folder: Folder, read_weights: bool) -> None:
        with folder.file(WEIGHTS) as file:
            header = self._header(file)
            if header is not None:
                self._sites(header)
            if header is not None and read_weights and not self.found.refused:
                self._values(file, header)

    def _header(self, file: OpenFile) -> Header | None:
        if file.size > limits.WEIGHTS_BYTES:
            message = f"has {file.size} bytes, at most {limits.WEIGHTS_BYTES} are allowed"
            self.found.refuse(Code.FILE_TOO_LARGE, message, WEIGHTS)
        if file.is_sparse():
            message = "is sparse: parts of it were never written; copy it again"
            self.found.refuse(Code.WEIGHTS_SPARSE, message, WEIGHTS)
        length = header_length(file.head(LENGTH_BYTES), file.size, self.found)
        if length is None:
            return None
        room = 0 if self.rules.base is None else 2 * len(self.rules.base.sites)
        most = max(limits.TENSORS, room + SPARE_TENSORS)
        return parse_header(file.head(LENGTH_BYTES + length), file.size, self.found, most)

    def _sites(self, header: Header) -> None:
        base, settings = self.rules.base, self.settings
        sites = None if base is None else base.sites
        self.tensors = match_sites(header.tensors, sites, self.found)
        if self.rules.equals_base is None:  # else they are compared when the weights are read
            refuse_full(self.tensors.full, "cannot be compared with the base's here", self.found)
        if settings is None:
            return
        if sites is not None and self.tensors.complete:
            check_targets(settings, sites, self.tensors.pairs, self.found)
        self.plans = plan_sites(settings, self.tensors.pairs, sites, self.rules.max_rank, self.found)
        if base is not None:
            check_base(self.manifest.base, settings.base_model, base, self.found)

    def _values(self, file: OpenFile, header: Header) -> None:
        data = file.read()
        if data[: len(header.raw)] != header.raw:
            raise FolderError(Code.FILE_CHANGED, "changed while it was read", WEIGHTS)
        if self.rules.equals_base is not None:
            drop_equal(self.tensors.full, data, self.rules.equals_base, self.found)
        check_values(self.tensors.pairs, data, self.found)
        self.files[WEIGHTS] = data

    @property
    def values_checked(self) -> bool:
        """Whether the weights were read and their values checked."""
        return WEIGHTS in self.files

    def inspection(self) -> Inspection:
        """The conclusion."""
        leaves = {plan.site.rpartition(".")[2] for plan in self.plans}
        rank = max((plan.rank for plan in self.plans), default=self.settings.r if self.settings else 0)
        return Inspection(
            name=self.manifest.name,
            version=self.manifest.version,
            manifest=self.manifest,
            rank=rank,
            target_modules=tuple(sorted(leaves)),
            size_bytes=self.size_bytes,
            findings=tuple(self.found),
            fingerprint=self.fingerprint,
            base_model=self.manifest.base.model or (self.settings.base_model if self.settings else ""),
            sites=self.plans,
            probes=self.probes,
        )
