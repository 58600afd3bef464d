"""An adapter folder as others use it: looked at without weights, read once and whole, or validated.

All three are one examination: every check, in the order in which its inputs become known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.engine.base import AdapterArtifact, BaseInfo, SiteDelta
from router.errors import AdapterRejected, ResourceExhausted
from router.names import name_from_folder
from router.registry.format.checks import (
    CheckedAgainst,
    EqualsBase,
    SitePlan,
    check_base,
    check_invocation,
    check_vocabulary,
    config_of,
    drop_equal,
    layout_of,
)
from router.registry.format.folder import (
    CONFIG,
    MANIFEST,
    OURS,
    PROBES,
    SIGNATURE,
    WEIGHTS,
    Folder,
    FolderError,
    OpenFile,
    find_layout,
)
from router.registry.format.lora_config import LoraSettings
from router.registry.format.manifest import Manifest, Probe, parse_manifest, parse_probes
from router.registry.format.tensors import (
    LENGTH_BYTES,
    Header,
    SiteTensors,
    check_values,
    header_length,
    tensor_data,
)
from router.registry.format.trust import Trust
from router.registry.format.untrusted import (
    CONFIG_BYTES,
    MANIFEST_BYTES,
    PROBES_BYTES,
    SIGNATURE_FILE_BYTES,
    WEIGHTS_BYTES,
    Code,
    FolderFinding,
    FolderFindings,
    Severity,
)

DEFAULT_MAX_RANK = 64
SMALL = {MANIFEST: MANIFEST_BYTES, PROBES: PROBES_BYTES, CONFIG: CONFIG_BYTES}
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
    findings: tuple[FolderFinding, ...]
    fingerprint: str  # changes when a file that counts changes; says nothing of contents
    base_model: str = ""  # what it says it was trained on
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA: it acts from the last occurrence on
    sites: tuple[SitePlan, ...] = ()
    probes: tuple[Probe, ...] = ()
    weights_sha256: str = field(default="", compare=False)  # hex; empty where the weights were not read

    @property
    def ok(self) -> bool:
        """Whether nothing was refused."""
        return not self.refusals

    @property
    def refusals(self) -> tuple[FolderFinding, ...]:
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
    def findings(self) -> tuple[FolderFinding, ...]:
        """Refusals and notes."""
        return self.inspection.findings

    @property
    def routing(self) -> str:
        """Whether requests that name no adapter may come to it with the default gate, and what to do."""
        seen = self.inspection
        if not seen.manifest.routing.examples:
            return "by name only: write 6 to 12 example requests as [routing] examples in adapter.toml"
        count = len(seen.manifest.routing.examples)
        return (
            f"{count} example{'s' if count != 1 else ''}: a first version is routed to at once; "
            "one that replaces it needs a report.json with a gain, or an experiment that it won"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values, with stable codes."""
        seen = self.inspection
        return {
            "folder": self.folder,
            "routing": self.routing,
            "ok": self.ok,
            "name": seen.name,
            "version": seen.version,
            "base_model": seen.base_model,
            "base_checked": self.base_checked,
            "values_checked": self.values_checked,
            "rank": seen.rank,
            "invocation_tokens": list(seen.invocation_tokens),
            "target_modules": list(seen.target_modules),
            "size_bytes": seen.size_bytes,
            "findings": [
                {"code": str(f.code), "severity": str(f.severity), "message": f.message, "where": f.where}
                for f in seen.findings
            ],
            "sites": [{"site": s.site, "rank": s.rank, "scaling": s.scaling} for s in seen.sites],
        }


@dataclass(frozen=True, slots=True)
class FolderRules:
    """What a folder is examined against.

    Without a base, modules and shapes are not compared. With `equals_base`, whole embedding matrices are
    compared when the weights are read; else they are refused. With `trust` all files are hashed first,
    weights too, and of an adapter that may not be served nothing is parsed.
    """

    base: BaseInfo | None
    max_rank: int = DEFAULT_MAX_RANK
    equals_base: EqualsBase | None = None
    trust: Trust | None = None  # None: every adapter may be served


def inspect_folder(folder: Path, rules: FolderRules) -> Inspection:
    """Check manifest, configuration and tensor names and shapes; no weights are read.

    Never raises for what is in the folder, or if it vanishes: all problems are among the findings. Takes
    milliseconds; blocks on the disk, so call it from a worker thread.
    """
    return Examination.of(folder, rules, read_weights=False).inspection()


def read_artifact(folder: Path, rules: FolderRules) -> tuple[AdapterArtifact, Inspection]:
    """Read every file once into memory, check it, and parse it from the very bytes that are hashed.

    Raises AdapterRejected with all refusals, ResourceExhausted if the weights do not fit into memory. The
    tensors are views into one buffer that nothing else refers to. Blocks: call it from a worker thread.
    """
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
        invocation_tokens=inspection.invocation_tokens,
        folder=folder.absolute(),
    )
    weights = hashlib.sha256(exam.files[WEIGHTS]).hexdigest()
    return artifact, replace(inspection, weights_sha256=weights)


def validate_folder(folder: Path, rules: FolderRules) -> Validation:
    """Check a folder completely, weights included. Never raises for what is in it."""
    exam = Examination.of(folder.absolute(), rules, read_weights=True)
    return Validation(
        folder=str(folder),
        inspection=exam.inspection(),
        base_checked=rules.base is not None,
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
            digest.update(_begin(name, len(files[name])))
            digest.update(files[name])
    return digest.hexdigest()


def _begin(name: str, size: int) -> bytes:
    return name.encode() + b"\0" + size.to_bytes(8, "little")


def digest_of_folder(path: Path) -> str:
    """The digest of the adapter in a folder, read in blocks; nothing is parsed. Raises AdapterRejected."""
    exam = Examination(FolderRules(None), Manifest(name=name_from_folder(path.name)))
    try:
        with ExitStack() as opened:
            parts = exam.open(opened.enter_context(Folder.open(path)), opened)
            if not exam.found.refused:
                return exam.hash(parts)
    except FolderError as error:
        exam.found.refuse(error.code, error.message, error.where)
    raise AdapterRejected(f"adapter folder {path.name!r}: {exam.inspection().error}")


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
class AdapterFiles:
    """An adapter's files, the small ones read, the weights open; None where there is none."""

    folder: Folder
    inner: Folder  # the same, or where configuration and weights are
    small: Mapping[str, bytes]
    weights: OpenFile | None


@dataclass(slots=True)
class Examination:
    """One pass over a folder. The weights are read only if asked for and nothing was refused before."""

    rules: FolderRules
    manifest: Manifest
    found: FolderFindings = field(default_factory=FolderFindings)
    settings: LoraSettings | None = None
    tensors: SiteTensors = field(default_factory=SiteTensors)
    plans: tuple[SitePlan, ...] = ()
    probes: tuple[Probe, ...] = ()
    files: dict[str, bytes | memoryview] = field(default_factory=dict)
    size_bytes: int = 0
    fingerprint: str = ""
    vouched: str = ""  # the digest that was found good, where that was asked for

    @classmethod
    def of(cls, path: Path, rules: FolderRules, *, read_weights: bool) -> Examination:
        """Examine the folder at `path`. Raises nothing but MemoryError."""
        exam = cls(rules, Manifest(name=name_from_folder(path.name)))
        try:
            with ExitStack() as opened:
                exam._run(opened.enter_context(Folder.open(path)), opened, read_weights)
        except FolderError as error:
            exam.found.refuse(error.code, error.message, error.where)
        return exam

    def _run(self, folder: Folder, opened: ExitStack, read_weights: bool) -> None:
        parts = self.open(folder, opened)
        if self.rules.trust is not None and not self._trusted(self.rules.trust, parts):
            return
        self.manifest, findings = parse_manifest(parts.small.get(MANIFEST), folder.name)
        self.found.items.extend(findings)
        if PROBES in parts.small:
            self.probes, findings = parse_probes(parts.small[PROBES])
            self.found.items.extend(findings)
        self._config(parts.small.get(CONFIG))
        if self.rules.base is not None:
            check_vocabulary(parts.inner, self.rules.base.vocab_size, self.found)
        if parts.weights is not None:
            self._weights(parts.weights, parts.small.get(CONFIG), read_weights)

    def open(self, folder: Folder, opened: ExitStack) -> AdapterFiles:
        """Find and open the files, and parse none; what is missing or too large is refused."""
        layout = find_layout(folder, self.found)
        inner = opened.enter_context(folder.subfolder(layout.nested)) if layout.nested else folder
        ours = [e for e in (layout.entries.get(n) or layout.inner.get(n) for n in OURS) if e is not None]
        self.size_bytes = sum(entry.size for entry in ours)
        self.fingerprint = layout.fingerprint()
        small: dict[str, bytes] = {}
        for name, most in SMALL.items():
            outside = name in layout.entries and name != CONFIG
            if outside or name in layout.inner:
                self._small(name, most, folder if outside else inner, small)
        self.files.update(small)
        weights = self._open_weights(inner, opened) if WEIGHTS in layout.inner else None
        return AdapterFiles(folder, inner, small, weights)

    def _small(self, name: str, most: int, folder: Folder, into: dict[str, bytes]) -> None:
        try:
            into[name] = folder.read(name, most)
        except FolderError as error:
            self.found.refuse(error.code, error.message, error.where)

    def _open_weights(self, folder: Folder, opened: ExitStack) -> OpenFile | None:
        try:
            file = opened.enter_context(folder.file(WEIGHTS))
        except FolderError as error:
            self.found.refuse(error.code, error.message, error.where)
            return None
        if file.size > WEIGHTS_BYTES:
            message = f"has {file.size} bytes, at most {WEIGHTS_BYTES} are allowed"
            self.found.refuse(Code.FILE_TOO_LARGE, message, WEIGHTS)
        if file.is_sparse():
            message = "is sparse: parts of it were never written; copy it again"
            self.found.refuse(Code.WEIGHTS_SPARSE, message, WEIGHTS)
        return file

    def hash(self, parts: AdapterFiles) -> str:
        """The digest of these files (see `digest_of`), the weights read in blocks."""
        digest = hashlib.sha256()
        for name in OURS:
            if name in parts.small:
                digest.update(_begin(name, len(parts.small[name])))
                digest.update(parts.small[name])
            elif name == WEIGHTS and parts.weights is not None:
                digest.update(_begin(name, parts.weights.size))
                parts.weights.hash_into(digest.update)
        return digest.hexdigest()

    def _trusted(self, trust: Trust, parts: AdapterFiles) -> bool:
        if self.found.refused:
            return False
        self.vouched = self.hash(parts)
        source = next((f for f in (parts.folder, parts.inner) if f.entry(SIGNATURE) is not None), None)
        signature = source.read(SIGNATURE, SIGNATURE_FILE_BYTES) if source is not None else None
        refusal = trust.refusal(self.vouched, signature)
        if refusal is not None:
            self.found.refuse(refusal.code, refusal.message, refusal.where)
        return refusal is None

    def _config(self, data: bytes | None) -> None:
        if data is not None:
            self.settings, findings = config_of(data)
            self.found.items.extend(findings)
        if self.settings is not None and self.rules.base is not None:
            check_invocation(self.settings.invocation_tokens, self.rules.base.vocab_size, self.found)

    def _weights(self, file: OpenFile, config: bytes | None, read_weights: bool) -> None:
        length = header_length(file.head(LENGTH_BYTES), file.size, self.found)
        if length is None:
            return
        rules = self.rules
        compared = rules.equals_base is not None
        against = CheckedAgainst(rules.base, rules.max_rank, compared)
        layout = layout_of(file.head(LENGTH_BYTES + length), file.size, config, against)
        self.found.extend(layout.findings)
        if layout.header is None or layout.tensors is None:
            return
        self.tensors, self.plans = layout.tensors, layout.plans
        if rules.base is not None and self.settings is not None:
            check_base(self.manifest.base, self.settings.base_model, rules.base, self.found)
        if read_weights and not self.found.refused:
            self._values(file, layout.header)

    def _values(self, file: OpenFile, header: Header) -> None:
        data = file.read()
        vouched = not self.vouched or digest_of({**self.files, WEIGHTS: data}) == self.vouched
        if data[: len(header.raw)] != header.raw or not vouched:
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
            invocation_tokens=self.settings.invocation_tokens if self.settings else (),
            sites=self.plans,
            probes=self.probes,
        )
