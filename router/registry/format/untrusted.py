"""What every check of an untrusted folder needs: limits, strict JSON and TOML, text fit for messages,
findings, and pydantic's errors as findings.

JSON is that of RFC 8259: UTF-8, no duplicate names, no NaN, finite numbers, bounded depth. TOML is looked at
before the parser sees it: tomllib takes time quadratic in the number of parts of a dotted key, recurses into
nested arrays, and reads escapes one by one, so a file of 200 KiB keeps it busy for minutes.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, NoReturn

from pydantic import ValidationError

# Every size that an outsider controls has a cap here.
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MANIFEST_BYTES = 256 * KIB
CONFIG_BYTES = MIB
HEADER_BYTES = MIB
PROBES_BYTES = MIB
REPORT_BYTES = MIB
SIGNATURE_FILE_BYTES = 4 * KIB
WEIGHTS_BYTES = 16 * GIB  # the true limit is base shapes times max_rank, checked before reading
MAX_FOLDER_ENTRIES = 1_000

MAX_JSON_PARTS = 1 << 16  # brackets and colons: each may cost a Python object, and objects cost collections
MAX_TENSORS = 4_096  # or what the base has room for

EXAMPLE_CHARS = 4_000

MAX_PATTERNS = 4_096
PATTERN_CHARS = 256
MAX_MODULES = 4_096
MAX_INVOCATION_TOKENS = 256  # tokens
MAX_TOKEN_ID = 1 << 31  # ids are below

MAX_RANK = 65_536
MAX_ALPHA = 1e6
MAX_DIMS = 8


# -- text, made fit for messages and logs


LONGEST = 80


def show(value: object, longest: int = LONGEST) -> str:
    """`value` on one line: control characters and lone surrogates escaped, cut to `longest`.

    >>> show("a\\nb")
    "'a\\\\nb'"
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 256:
        return "a huge number"  # str() of it takes quadratic time, or raises
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'table'} of {len(value)}"
    cut = value[: longest + 1] if isinstance(value, str) else value
    text = repr(cut).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest + 2 else text[:longest] + "…"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names, and how many more there are."""
    listed = list(names)
    head = ", ".join(show(n, 120) for n in listed[:most])
    return head if len(listed) <= most else f"{head} and {len(listed) - most} more"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing if no known name is near."""
    found = difflib.get_close_matches(name[:LONGEST], list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


# -- JSON and TOML: what is ambiguous, or would keep a parser busy, is refused


DOTS, DEPTH, ESCAPES = 8, 16, 20_000  # in TOML

# Comments and the four kinds of strings; an unclosed one runs to the end of its line or of the file.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*",
    re.DOTALL,
)
_STRUCTURE = re.compile(r"[\[{]|[\]}]")
_BORDER = re.compile(r"[,=\[\]{}\n]")


class JsonError(ValueError):
    """The text is not strict JSON; the message says why and is fit for a user."""


def load_json(data: bytes) -> Any:
    """Parse JSON. Raises JsonError and nothing else."""
    parts = data.count(b"[") + data.count(b"{") + data.count(b":")
    if parts > MAX_JSON_PARTS:
        raise JsonError(f"has {parts} parts, at most {MAX_JSON_PARTS} are allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except JsonError:
        raise
    except ValueError:  # int() of more digits than Python converts
        raise JsonError("a number has too many digits") from None


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"{show(twice)} appears twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{show(text)} is out of range")
    return value


def toml_too_complex(text: str) -> str:
    """Why the TOML `text` is not worth parsing, or an empty string."""
    if text.count("\\") > ESCAPES:
        return f"has more than {ESCAPES} backslashes"
    bare = _OPAQUE.sub("", text)
    if any(piece.count(".") > DOTS for piece in _BORDER.split(bare)):
        return f"a key has more than {DOTS} dots"
    depth = 0
    for mark in _STRUCTURE.findall(bare):
        depth += 1 if mark in "[{" else -1
        if depth > DEPTH:
            return f"brackets are nested more than {DEPTH} deep"
    return ""


# -- what pydantic says of a value


Place = tuple[int | str, ...]
MOST = 100  # reported faults of one file


_SHOULD = re.compile("(Input|Tuple|String|Dictionary) should (.*)")
_KINDS = (
    ("a valid tuple", "a list"),
    ("a valid string", "a string"),
    ("a valid boolean", "true or false"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    (" after validation", ""),
)


def faults(error: ValidationError) -> Iterator[tuple[Place, str, str]]:
    """The first MOST faults: the place, pydantic's name of it, and what is wrong, fit for a message."""
    for fault in islice(error.errors(include_url=False), MOST):
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            text = "is missing"
        elif said := _SHOULD.fullmatch(text):
            kind = "be a table" if "dictionary" in said[2] else said[2]
            for pydantics, ours in _KINDS:
                kind = kind.replace(pydantics, ours)
            text = f"must {kind}" + (f", is {show(fault['input'])}" if said[1] == "Input" else "")
        yield fault["loc"], fault["type"], text


def named_place(place: Iterable[int | str]) -> str:
    """A place as people write it: `regressions[0].what`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{show(part)[1:-1]}" for part in place)
    return "".join(parts).removeprefix(".")


# -- findings: refusals and notes with stable codes, all of them at once


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
    TENSOR_UNSUPPORTED = "tensor-unsupported"
    FULL_COPY = "full-copy"
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
    CONSTRAINT_REFUSED = "constraint-refused"
    # probes.jsonl
    PROBE_INVALID = "probe-invalid"


class Severity(StrEnum):
    """What a finding means for the adapter."""

    NOTE = "note"  # accepted; nothing is normalised or ignored in silence
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class FolderFinding:
    """One thing found. `code` is one of Code; `where` a file, field or tensor."""

    code: str
    severity: Severity
    message: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(slots=True)
class FolderFindings:
    """Collects findings; keeps the first MOST of them, a hostile file could make millions."""

    items: list[FolderFinding] = field(default_factory=list)

    def note(self, code: str, message: str, where: str = "") -> None:
        """Add something that does not stand in the way."""
        self._add(FolderFinding(code, Severity.NOTE, message, where))

    def refuse(self, code: str, message: str, where: str = "") -> None:
        """Add a reason why the adapter cannot be served."""
        self._add(FolderFinding(code, Severity.REFUSE, message, where))

    def extend(self, findings: Iterable[FolderFinding]) -> None:
        """Add what was found elsewhere."""
        for finding in findings:
            self._add(finding)

    def _add(self, finding: FolderFinding) -> None:
        if len(self.items) < MOST or (finding.severity is Severity.REFUSE and not self.refused):
            self.items.append(finding)

    @property
    def refused(self) -> bool:
        """Whether any of them is a refusal."""
        return any(f.severity is Severity.REFUSE for f in self.items)

    def __iter__(self) -> Iterator[FolderFinding]:
        return iter(self.items)
