"""An adapter folder as others use it: looked at without weights, read once and whole, or validated.

All three are one examination: every check, in the order in which its inputs become known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from router.engine.base import AdapterArtifact, BaseInfo, SiteDelta
from router.errors import AdapterRejected, ResourceExhausted
from router.names import name_from_folder
from router.registry.format.checks import (
    SitePlan,
    check_base,
    check_invocation,
    check_targets,
    check_vocabulary,
    plan_sites,
    refuse_full,
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
    explain_missing,
    folders_with_adapter,
    note_ignored,
)
from router.registry.format.lora_config import LoraSettings, parse_lora_config
from router.registry.format.manifest import Manifest, Probe, parse_manifest, parse_probes
from router.registry.format.tensors import (
    LENGTH_BYTES,
    SiteTensors,
    check_values,
    header_length,
    match_sites,
    parse_header,
    tensor_data,
)
from router.registry.format.trust import Trust
from router.registry.format.untrusted import (
    CONFIG_BYTES,
    MANIFEST_BYTES,
    MAX_TENSORS,
    PROBES_BYTES,
    SIGNATURE_FILE_BYTES,
    WEIGHTS_BYTES,
    Code,
    FolderFinding,
    FolderFindings,
    Severity,
)

SMALL = {
    MANIFEST: MANIFEST_BYTES,
    PROBES: PROBES_BYTES,
    CONFIG: CONFIG_BYTES,
    SIGNATURE: SIGNATURE_FILE_BYTES,
}
LONGEST_ERROR = 3_000  # characters; trailers of a gRPC answer are limited to 8 KiB by default


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an examination of an adapter folder concluded."""

    name: str
    version: str
    manifest: Manifest
    rank: int  # the largest over all sites
    target_modules: tuple[str, ...]  # last parts of the names of the sites with weights
    size_bytes: int  # of the files that count
    findings: tuple[FolderFinding, ...]
    base_model: str = ""  # what it says it was trained on
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA: it acts from the last occurrence on
    sites: tuple[SitePlan, ...] = ()
    probes: tuple[Probe, ...] = ()
    weights_sha256: str = field(default="", compare=False)  # hex; empty where the weights were not read
    base_checked: bool = field(default=False, compare=False)  # modules and shapes were compared with a base
    values_checked: bool = field(default=False, compare=False)  # the weights were read
    folder: str = field(default="", compare=False)

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

    @property
    def routing(self) -> str:
        """Whether requests that name no adapter may come to it with the default gate, and what to do."""
        if not (count := len(self.manifest.routing.examples)):
            return "by name only: write 6 to 12 example requests as [routing] examples in adapter.toml"
        return (
            f"{count} example{'s' if count != 1 else ''}: a first version is routed to at once; "
            "one that replaces it needs a report.json with a gain, or an experiment that it won"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values, with stable codes."""
        return {
            "folder": self.folder,
            "routing": self.routing,
            "ok": self.ok,
            "name": self.name,
            "version": self.version,
            "base_model": self.base_model,
            "base_checked": self.base_checked,
            "values_checked": self.values_checked,
            "rank": self.rank,
            "invocation_tokens": list(self.invocation_tokens),
            "target_modules": list(self.target_modules),
            "size_bytes": self.size_bytes,
            "findings": [
                {"code": str(f.code), "severity": str(f.severity), "message": f.message, "where": f.where}
                for f in self.findings
            ],
            "sites": [{"site": s.site, "rank": s.rank, "scaling": s.scaling} for s in self.sites],
        }


@dataclass(frozen=True, slots=True, eq=False)
class FolderRules:
    """What a folder is examined against.

    Without a base, modules and shapes are not compared. With `trust` all files are hashed first, weights too,
    and of an adapter that may not be served nothing is parsed.
    """

    base: BaseInfo | None
    max_rank: int = 64
    trust: Trust | None = None  # None: every adapter may be served


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The tensors of a weights file by site, and how they will be served."""

    tensors: SiteTensors = field(default_factory=SiteTensors)
    plans: tuple[SitePlan, ...] = ()
    findings: tuple[FolderFinding, ...] = ()


SPARE_TENSORS = 64  # whole matrices that may be saved along


# Adapters of one recipe share header and configuration byte for byte: of thousands each pair is checked once.
@lru_cache(4)
def layout_of(raw: bytes, file_size: int, config: bytes | None, rules: FolderRules) -> TensorLayout:
    """What a header says under a configuration; never raises. `raw`: its length and JSON."""
    found, base = FolderFindings(), rules.base
    room = 0 if base is None else 2 * len(base.sites)
    entries = parse_header(raw, file_size, found, max(MAX_TENSORS, room + SPARE_TENSORS))
    if entries is None:
        return TensorLayout(findings=tuple(found))
    sites = None if base is None else base.sites
    tensors = match_sites(entries, sites, found)
    refuse_full(tensors.full, found)
    settings = None if config is None else parse_lora_config(config)[0]
    if settings is None:
        return TensorLayout(tensors, (), tuple(found))
    if sites is not None and tensors.complete:
        check_targets(settings, sites, tensors.pairs, found)
    plans = plan_sites(settings, tensors.pairs, sites, rules.max_rank, found)
    return TensorLayout(tensors, plans, tuple(found))


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


def validate_folder(folder: Path, rules: FolderRules) -> Inspection:
    """Check a folder completely, weights included. Never raises for what is in it."""
    exam = Examination.of(folder.absolute(), rules, read_weights=True)
    return replace(exam.inspection(), folder=str(folder))


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
    exam = Examination(FolderRules(None), path)
    try:
        with exam.opened():
            if exam.weights is not None and not exam.found.refused:
                return exam.hash(exam.weights)
    except FolderError as error:
        exam.found.refuse(error.code, error.message, error.where)
    raise AdapterRejected(f"adapter folder {path.name!r}: {exam.inspection().error}")


def _sites(exam: Examination) -> Mapping[str, SiteDelta]:
    data = memoryview(exam.files[WEIGHTS])
    pairs = exam.layout.tensors.pairs
    return {
        plan.site: SiteDelta(
            a=tensor_data(pairs[plan.site].a, data),
            b=tensor_data(pairs[plan.site].b, data),
            scaling=plan.scaling,
        )
        for plan in exam.layout.plans
    }


class Examination:
    """One pass over a folder. The weights are read only if asked for and nothing was refused before."""

    def __init__(self, rules: FolderRules, path: Path) -> None:
        self.rules, self.path = rules, path
        self.manifest = Manifest(name=name_from_folder(path.name))
        self.found = FolderFindings()
        self.settings: LoraSettings | None = None
        self.layout = TensorLayout()
        self.probes: tuple[Probe, ...] = ()
        self.files: dict[str, bytes | memoryview] = {}
        self.weights: OpenFile | None = None
        self.vouched = ""  # the digest that was found good, where that was asked for
        self.size_bytes = 0

    @classmethod
    def of(cls, path: Path, rules: FolderRules, *, read_weights: bool) -> Examination:
        """Examine the folder at `path`. Raises nothing but MemoryError."""
        exam = cls(rules, path)
        try:
            with exam.opened() as folder:
                if rules.trust is None or exam._is_trusted(rules.trust):
                    exam._parse(folder)
                    if exam.weights is not None:
                        exam._weights(exam.weights, read_weights)
        except FolderError as error:
            exam.found.refuse(error.code, error.message, error.where)
        return exam

    @contextmanager
    def opened(self) -> Iterator[Folder]:
        """Open the folder, read its small files and open the weights, parsing none of it. Raises FolderError.

        What is missing, too large or cannot be read is refused.
        """
        with Folder.open(self.path) as folder, ExitStack() as stack:
            names = folder.names()
            explain_missing(names, self.found, folders_with_adapter(self.path) if CONFIG not in names else ())
            note_ignored(names, self.found)
            for name, most in SMALL.items():
                if name in names and (name != SIGNATURE or self.rules.trust is not None):
                    self._small(folder, name, most)
            if WEIGHTS in names:
                self.weights = self._open_weights(folder, stack)
            yield folder

    def _small(self, folder: Folder, name: str, most: int) -> None:
        try:
            self.files[name] = folder.read(name, most)
        except FolderError as error:
            self.found.refuse(error.code, error.message, error.where)
        else:
            self.size_bytes += len(self.files[name]) if name != SIGNATURE else 0

    def _open_weights(self, folder: Folder, stack: ExitStack) -> OpenFile | None:
        try:
            file = stack.enter_context(folder.file(WEIGHTS))
        except FolderError as error:
            self.found.refuse(error.code, error.message, error.where)
            return None
        self.size_bytes += file.size
        if file.size > WEIGHTS_BYTES:
            message = f"has {file.size} bytes, at most {WEIGHTS_BYTES} are allowed"
            self.found.refuse(Code.FILE_TOO_LARGE, message, WEIGHTS)
        if file.is_sparse():
            message = "is sparse: parts of it were never written; copy it again"
            self.found.refuse(Code.WEIGHTS_SPARSE, message, WEIGHTS)
        return file

    def hash(self, weights: OpenFile) -> str:
        """The digest of these files (see `digest_of`), the weights read in blocks."""
        digest = hashlib.sha256()
        for name in OURS:
            if name == WEIGHTS:
                digest.update(_begin(name, weights.size))
                weights.hash_into(digest.update)
            elif name in self.files:
                digest.update(_begin(name, len(self.files[name])))
                digest.update(self.files[name])
        return digest.hexdigest()

    def _is_trusted(self, trust: Trust) -> bool:
        if self.weights is None or self.found.refused:
            return False
        self.vouched = self.hash(self.weights)
        trust.check(self.vouched, self._text(SIGNATURE), self.found)
        return not self.found.refused

    def _parse(self, folder: Folder) -> None:
        """The small files."""
        manifest, probes, config = (self._text(name) for name in (MANIFEST, PROBES, CONFIG))
        self.manifest, findings = parse_manifest(manifest, self.path.name)
        self.found.extend(findings)
        if probes is not None:
            self.probes, findings = parse_probes(probes)
            self.found.extend(findings)
        if config is not None:
            self.settings, findings = parse_lora_config(config)
            self.found.extend(findings)
        if self.rules.base is not None:
            check_vocabulary(folder, self.rules.base.vocab_size, self.found)
            tokens = self.settings.invocation_tokens if self.settings else ()
            check_invocation(tokens, self.rules.base.vocab_size, self.found)

    def _text(self, name: str) -> bytes | None:
        data = self.files.get(name)
        return None if data is None else bytes(data)

    def _weights(self, file: OpenFile, read_weights: bool) -> None:
        length = header_length(file.head(LENGTH_BYTES), file.size, self.found)
        if length is None:
            return
        head = file.head(LENGTH_BYTES + length)
        self.layout = layout_of(head, file.size, self._text(CONFIG), self.rules)
        self.found.extend(self.layout.findings)
        if self.rules.base is not None and self.settings is not None and self.layout.tensors.pairs:
            check_base(self.manifest.base, self.settings.base_model, self.rules.base, self.found)
        if not read_weights or self.found.refused:
            return
        data = file.read()
        vouched = not self.vouched or digest_of({**self.files, WEIGHTS: data}) == self.vouched
        if data[: len(head)] != head or not vouched:
            raise FolderError(Code.FILE_CHANGED, "changed while it was read", WEIGHTS)
        check_values(self.layout.tensors.pairs, data, self.found)
        self.files[WEIGHTS] = data

    def inspection(self) -> Inspection:
        """The conclusion."""
        plans, settings = self.layout.plans, self.settings
        return Inspection(
            name=self.manifest.name,
            version=self.manifest.version,
            manifest=self.manifest,
            rank=max((plan.rank for plan in plans), default=settings.r if settings else 0),
            target_modules=tuple(sorted({plan.site.rpartition(".")[2] for plan in plans})),
            size_bytes=self.size_bytes,
            findings=tuple(self.found),
            base_model=self.manifest.base.model or (settings.base_model if settings else ""),
            invocation_tokens=settings.invocation_tokens if settings else (),
            sites=plans,
            probes=self.probes,
            base_checked=self.rules.base is not None,
            values_checked=WEIGHTS in self.files,
        )
