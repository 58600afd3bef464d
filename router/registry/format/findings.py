"""What a check of an adapter folder says: refusals and notes with stable codes, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

MOST = 100


class Code(StrEnum):
    """What was found. Scripts rely on codes: one never changes its meaning; new ones may appear."""

    # the folder
    FOLDER_UNREADABLE = "folder-unreadable"
    FILE_UNREADABLE = "file-unreadable"
    FILE_NOT_REGULAR = "file-not-regular"
    FILE_TOO_LARGE = "file-too-large"
    FILE_CHANGED = "file-changed"
    NO_ADAPTER = "no-adapter"
    NO_WEIGHTS = "no-weights"
    NESTED_FOLDER = "nested-folder"
    SEVERAL_ADAPTERS = "several-adapters"
    MERGED_MODEL = "merged-model"
    PICKLE_WEIGHTS = "pickle-weights"
    GGUF_WEIGHTS = "gguf-weights"
    FILES_IGNORED = "files-ignored"
    # who vouches for it
    SIGNATURE_MISSING = "signature-missing"
    SIGNATURE_INVALID = "signature-invalid"
    DIGEST_NOT_LISTED = "digest-not-listed"
    # adapter.toml
    MANIFEST_SYNTAX = "manifest-syntax"
    MANIFEST_UNKNOWN = "manifest-unknown-key"
    MANIFEST_VALUE = "manifest-value"
    NAME_NORMALISED = "name-normalised"
    NAME_INVALID = "name-invalid"
    # adapter_config.json
    CONFIG_SYNTAX = "config-syntax"
    CONFIG_VALUE = "config-value"
    CONFIG_UNSUPPORTED = "config-unsupported"
    CONFIG_UNKNOWN = "config-unknown-key"
    CONFIG_IGNORED = "config-ignored"
    CONFIG_PATTERN = "config-pattern"
    PEFT_TYPE = "peft-type"
    TASK_TYPE = "task-type"
    INIT_CHANGES_BASE = "init-changes-base"
    # adapter_model.safetensors
    HEADER_INVALID = "header-invalid"
    HEADER_TOO_LARGE = "header-too-large"
    DTYPE_UNSUPPORTED = "dtype-unsupported"
    SHAPE_INVALID = "shape-invalid"
    OFFSETS_INVALID = "offsets-invalid"
    WEIGHTS_TRUNCATED = "weights-truncated"
    WEIGHTS_TRAILING = "weights-trailing-bytes"
    WEIGHTS_SPARSE = "weights-sparse"
    # tensors against configuration and base
    KEYS_NORMALISED = "keys-normalised"
    KEYS_UNMATCHED = "keys-unmatched"
    KEYS_AMBIGUOUS = "keys-ambiguous"
    KEYS_UNPAIRED = "keys-unpaired"
    KEYS_IMAGE_MODEL = "keys-image-model"
    TENSOR_UNSUPPORTED = "tensor-unsupported"
    FULL_COPY = "full-copy"
    FULL_COPY_DROPPED = "full-copy-dropped"
    TARGET_WITHOUT_WEIGHTS = "target-without-weights"
    WEIGHTS_WITHOUT_TARGET = "weights-without-target"
    RANK_MISMATCH = "rank-mismatch"
    RANK_TOO_LARGE = "rank-too-large"
    SHAPE_MISMATCH = "shape-mismatch"
    NOT_FINITE = "not-finite"
    NO_EFFECT = "no-effect"
    # the base
    OTHER_BASE = "other-base"
    OTHER_BASE_NAME = "other-base-name"
    VOCABULARY = "vocabulary"
    NEVER_ACTIVE = "never-active"
    # probes.jsonl
    PROBE_INVALID = "probe-invalid"


class Severity(StrEnum):
    """What a finding means for the adapter."""

    NOTE = "note"  # accepted; said so that nothing is normalised or ignored in silence
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `code` is one of Code; `where` a file, field or tensor."""

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

    def extend(self, findings: Iterable[Finding]) -> None:
        """Add what was found elsewhere."""
        for finding in findings:
            self._add(finding)

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
