"""The small files beside the weights: `adapter.toml`, `probes.jsonl` and `report.json`.

Everything in them is data: the prompt template is used by literal replacement of `{prompt}` and nothing is
ever evaluated, formatted or compiled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from router.engine.constrained.objects import with_closed_objects
from router.engine.constrained.source import check_form, grammar_text
from router.errors import FailedPrecondition, InvalidRequest
from router.names import (
    DEFAULT_VERSION,
    LABEL_RULE,
    NAME_RULE,
    VERSION_RULE,
    is_label,
    is_name,
    is_version,
    name_from_folder,
)
from router.registry.format.folder import MANIFEST, PROBES, REPORT, Folder, FolderError
from router.registry.format.untrusted import (
    EXAMPLE_CHARS,
    KEYWORD_CHARS,
    MANIFEST_BYTES,
    MAX_EXAMPLES,
    MAX_KEYWORDS,
    MAX_PROBE_LINES,
    MAX_PROBES,
    PROBES_BYTES,
    PROMPT_CHARS,
    REPORT_BYTES,
    Code,
    FolderFinding,
    FolderFindings,
    JsonError,
    load_json,
    nearest,
    show,
    toml_too_complex,
)
from router.types import (
    CONSTRAINT_KINDS,
    MAX_CHOICES,
    MAX_CONSTRAINT_BYTES,
    MAX_STOP_BYTES,
    MAX_STOPS,
    PLACEHOLDER,
    SAMPLING_RANGES,
    AdapterProfile,
    Constraint,
    LabelSettings,
    PromptTemplate,
    Range,
    Sampling,
)

KEYS: dict[str, tuple[str, ...]] = {
    "adapter": ("name", "version", "description", "domain", "task", "license"),
    "base": ("model", "digest"),
    "prompt": ("system", "template"),
    "generation": (*(f.name for f in fields(Sampling) if f.name != "constraint"), *CONSTRAINT_KINDS),
    "labels": (*(f.name for f in fields(LabelSettings)), "prior"),
    "routing": ("examples", "negative_examples", "keywords"),
}


@dataclass(frozen=True, slots=True)
class BasePin:
    """`[base]`: the base it was trained on. `digest` is lower-case sha256 hex, as BaseInfo.digest."""

    model: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RoutingText:
    """`[routing]`: what classifiers learn from."""

    examples: tuple[str, ...] = ()
    negative_examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What adapter.toml says, with defaults where it says nothing."""

    name: str
    version: str = DEFAULT_VERSION
    description: str = ""
    domain: str = ""
    task: str = ""
    license: str = ""
    base: BasePin = BasePin()
    prompt: PromptTemplate = PromptTemplate()
    generation: Sampling = Sampling()
    labels: LabelSettings = LabelSettings()
    routing: RoutingText = field(default_factory=RoutingText)

    def profile(self) -> AdapterProfile:
        """The part that routing may know."""
        return AdapterProfile(
            name=self.name,
            version=self.version,
            domain=self.domain,
            task=self.task,
            description=self.description,
            examples=self.routing.examples,
            negative_examples=self.routing.negative_examples,
            keywords=self.routing.keywords,
            needs_passage=self.generation.constraint == Constraint("from_prompt", "quote"),
        )


def parse_manifest(data: bytes | None, folder_name: str) -> tuple[Manifest, tuple[FolderFinding, ...]]:
    """Read a manifest; `data` None means that there is none. Never raises: all problems are findings.

    A refused value is left at its default, so that the rest of the folder can still be checked.
    """
    found = FolderFindings()
    tables = {} if data is None else _tables(data, found)
    at = {name: ManifestTable(name, tables.get(name, {}), keys, found) for name, keys in KEYS.items()}
    label = _must(is_label, LABEL_RULE)
    manifest = Manifest(
        name=_name(at["adapter"], folder_name, found),
        version=at["adapter"].text("version", 63, _must(is_version, VERSION_RULE)) or DEFAULT_VERSION,
        description=at["adapter"].text("description", 1_000, _one_line),
        domain=at["adapter"].text("domain", 63, label),
        task=at["adapter"].text("task", 63, label),
        license=at["adapter"].text("license", 200, _one_line),
        base=BasePin(at["base"].text("model", 256, _one_line), _digest(at["base"])),
        prompt=_prompt(at["prompt"]),
        generation=_with_prior(generation := _generation(at["generation"]), at["labels"]),
        labels=_labels(at["labels"], generation),
        routing=_routing(at["routing"]),
    )
    return manifest, tuple(found)


def _tables(data: bytes, found: FolderFindings) -> Mapping[str, Mapping[str, Any]]:
    document = _document(data, found)
    tables: dict[str, Mapping[str, Any]] = {}
    for name, value in document.items():
        if name not in KEYS:
            hint = nearest(name, KEYS) or f"; known: {', '.join(KEYS)}"
            found.refuse(Code.MANIFEST_UNKNOWN, f"unknown table or key {show(name)}{hint}", MANIFEST)
        elif isinstance(value, dict):
            tables[name] = value
        else:
            found.refuse(Code.MANIFEST_VALUE, f"[{name}] must be a table, is {show(value)}", MANIFEST)
    return tables


def _document(data: bytes, found: FolderFindings) -> Mapping[str, Any]:
    problem = ""
    try:
        if len(data) > MANIFEST_BYTES:
            problem = f"has {len(data)} bytes, at most {MANIFEST_BYTES} are allowed"
        else:
            text = data.decode("utf-8")
            problem = toml_too_complex(text)
            if not problem:
                return tomllib.loads(text)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:  # TOMLDecodeError, and int() of too many digits
        problem = f"not TOML: {show(str(error), 200)}"
    found.refuse(Code.MANIFEST_SYNTAX, problem, MANIFEST)
    return {}


def _name(table: ManifestTable, folder_name: str, found: FolderFindings) -> str:
    name = table.text("name", 63, _must(is_name, NAME_RULE))
    if name:
        return name
    derived = name_from_folder(folder_name)
    if not derived:
        message = f"the folder's name {show(folder_name)} gives no adapter name: {NAME_RULE}"
        found.refuse(Code.NAME_INVALID, message)
    elif derived != folder_name:
        message = f"the folder {show(folder_name)} is served as {derived!r}"
        found.note(Code.NAME_NORMALISED, message)
    return derived


def _must(fits: Callable[[str], bool], rule: str) -> Callable[[str], str]:
    """A check for `ManifestTable.text`."""
    return lambda value: "" if fits(value) else f"{show(value)} must be {rule}"


def _digest(table: ManifestTable) -> str:
    digest = table.text("digest", 71).removeprefix("sha256:").lower()
    if digest and re.fullmatch("[0-9a-f]{64}", digest) is None:
        table.bad("digest", "must be a sha256 of 64 hexadecimal digits")
        return ""
    return digest


def _prompt(table: ManifestTable) -> PromptTemplate:
    system = table.text("system", PROMPT_CHARS)
    template = table.text("template", PROMPT_CHARS, lambda text: PromptTemplate(template=text).problem)
    return PromptTemplate(system, template or PLACEHOLDER)


def _routing(table: ManifestTable) -> RoutingText:
    return RoutingText(
        examples=table.texts("examples", MAX_EXAMPLES, EXAMPLE_CHARS),
        negative_examples=table.texts("negative_examples", MAX_EXAMPLES, EXAMPLE_CHARS),
        keywords=table.texts("keywords", MAX_KEYWORDS, KEYWORD_CHARS),
    )


# -- [generation]


def _generation(table: ManifestTable) -> Sampling:
    """Sampling as `[generation]` gives it; bad values become findings and are left out."""
    values: dict[str, Any] = {}
    for key, allowed in SAMPLING_RANGES.items():
        if key not in table.values:
            continue
        value = table.values[key]
        number = "a whole number" if allowed.kind is int else "a number"
        if isinstance(value, (int, allowed.kind)) and not isinstance(value, bool) and value in allowed:
            values[key] = allowed.kind(value)
        else:
            table.bad(key, f"must be {number} in {allowed}, is {show(value)}")
    if values.get("min_tokens", 0) > values.get("max_tokens", SAMPLING_RANGES["max_tokens"].high):
        table.bad("min_tokens", f"{values['min_tokens']} is more than max_tokens {values['max_tokens']}")
    if "stop" in table.values:
        values["stop"] = _stops(table)
    values["constraint"] = _constraint(table)
    return Sampling(**values)


def _constraint(table: ManifestTable) -> Constraint | None:
    """What every answer must look like; whether the base can keep to it is seen when the adapter loads."""
    given = [kind for kind in CONSTRAINT_KINDS if kind in table.values]
    if not given:
        return None
    kind = given[0]
    if len(given) > 1:
        table.bad(given[1], f"an answer has one constraint: {kind} is given already")
        return None
    if kind == "choices":
        made = Constraint(kind, choices=table.strings(kind, MAX_CHOICES))
    else:
        made = with_closed_objects(Constraint(kind, table.text(kind, MAX_CONSTRAINT_BYTES)))
    try:
        if kind == "from_prompt":  # whether there is such a template is seen when the adapter loads
            check_form(made)
        else:
            grammar_text(made)
    except InvalidRequest as error:
        table.bad(kind, error.violations[0].description)
        return None
    except FailedPrecondition:
        return made  # this environment cannot check it, and refuses the adapter when it loads
    return made


TEMPERATURES = Range(float, 0.05, 20.0)


def _labels(table: ManifestTable, generation: Sampling) -> LabelSettings:
    """`[labels]`; bad values become findings and are left out."""
    constraint = generation.constraint
    if constraint is None or constraint.kind != "choices":
        if table.values:
            table.bad("", "is for adapters with choices in [generation]")
        return LabelSettings()
    always, temperature = table.values.get("always", False), table.values.get("temperature")
    if not isinstance(always, bool):
        table.bad("always", f"must be true or false, is {show(always)}")
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if temperature is not None and not (number and temperature in TEMPERATURES):
        table.bad("temperature", f"must be a number in {TEMPERATURES}, is {show(temperature)}")
        temperature = None
    return LabelSettings(always is True, None if temperature is None else float(temperature))


PRIORS = Range(float, -20.0, 20.0)


def _with_prior(generation: Sampling, table: ManifestTable) -> Sampling:
    """`generation` with the `prior` of its choices; bad values become findings and are left out."""
    given, constraint = table.values.get("prior", {}), generation.constraint
    if not isinstance(given, dict):
        table.bad("prior", f"must be a table of choices and numbers, is {show(given)}")
        return generation
    if not given or constraint is None or constraint.kind != "choices":
        return generation
    if len(given) > len(constraint.choices):
        table.bad("prior", f"has {len(given)} entries for {len(constraint.choices)} choices")
        return generation
    known = frozenset(constraint.choices)
    for choice, value in given.items():  # up to the first that is bad: the nearest choice is costly to find
        if choice not in known:
            table.bad("prior", f"{show(choice)} is no choice{nearest(choice, constraint.choices)}")
            return generation
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in PRIORS:
            table.bad("prior", f"of {show(choice)} must be a number in {PRIORS}, is {show(value)}")
            return generation
    values = tuple(float(given.get(choice, 0.0)) for choice in constraint.choices)
    return replace(generation, constraint=replace(constraint, prior=values))


def _stops(table: ManifestTable) -> tuple[str, ...]:
    stops = table.strings("stop", MAX_STOPS)
    for index, text in enumerate(stops):
        size = len(text.encode("utf-8"))
        if not 1 <= size <= MAX_STOP_BYTES:
            table.bad("stop", f"entry {index} must have 1 to {MAX_STOP_BYTES} bytes, has {size}")
            return ()
    return stops


# -- a table, read with types


class ManifestTable:
    """A `[name]` table of the manifest."""

    def __init__(
        self, name: str, values: Mapping[str, Any], known: Collection[str], found: FolderFindings
    ) -> None:
        self.name, self.values, self.found = name, values, found
        for key in values:
            if key not in known:
                hint = nearest(key, known) or f"; known: {', '.join(known)}"
                found.refuse(Code.MANIFEST_UNKNOWN, f"unknown key {show(key)}{hint}", self._where(""))

    def _where(self, key: str) -> str:
        return f"{MANIFEST} [{self.name}] {key}".rstrip()

    def bad(self, key: str, message: str) -> None:
        """Refuse the value of `key`."""
        self.found.refuse(Code.MANIFEST_VALUE, message, self._where(key))

    def text(self, key: str, most: int, check: Callable[[str], str] | None = None) -> str:
        """A string of at most `most` characters; `check` says what else is wrong with it, if anything."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            self.bad(key, f"must be a string, is {show(value)}")
            return ""
        problem = f"has {len(value)} characters, at most {most} are allowed" if len(value) > most else ""
        if not problem and key in self.values and check is not None:
            problem = check(value)
        if problem:
            self.bad(key, problem)
            return ""
        return value

    def texts(self, key: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` strings of 1 to `longest` characters, none of them blank."""
        value = self.strings(key, most)
        for index, text in enumerate(value):
            if not text.strip() or len(text) > longest:
                self.bad(key, f"entry {index} must have 1 to {longest} characters, has {len(text)}")
                return ()
        return value

    def strings(self, key: str, most: int) -> tuple[str, ...]:
        """A list of at most `most` strings."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.bad(key, f"must be a list of strings, is {show(value)}")
            return ()
        if len(value) > most:
            self.bad(key, f"has {len(value)} entries, at most {most} are allowed")
            return ()
        return tuple(value)


def _one_line(value: str) -> str:
    """A check for `ManifestTable.text`: printable, no line breaks."""
    return "" if value.isprintable() else "must be one line of printable characters"


# -- probes.jsonl


PROBE_KEYS = ("prompt", "expect", "match", "max_tokens")
# An adapter serves when its probes have ended, so what they take is bounded.
MOST_TOKENS = 128  # of an answer
PROBE_CHARS = 4_000  # of a prompt, and of what is expected


class Match(StrEnum):
    """How an answer is compared with what is expected; surrounding white space never counts."""

    EXACT = "exact"
    PREFIX = "prefix"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True)
class Probe:
    """A line of probes.jsonl: {"prompt": …, "expect": …}, optionally "match" (exact, prefix or contains;
    prefix is the default) and "max_tokens". It is one prompt and what the adapter, decoding greedily, must
    answer."""

    prompt: str
    expect: str
    match: Match = Match.PREFIX
    max_tokens: int = 32

    def passes(self, answer: str) -> bool:
        """Whether `answer` is what was expected."""
        got, expected = answer.strip(), self.expect.strip()
        if self.match is Match.EXACT:
            return got == expected
        return got.startswith(expected) if self.match is Match.PREFIX else expected in got


def parse_probes(data: bytes) -> tuple[tuple[Probe, ...], tuple[FolderFinding, ...]]:
    """Read probes.jsonl. Never raises: a line that is wrong becomes a finding."""
    found = FolderFindings()
    if len(data) > PROBES_BYTES:
        message = f"has {len(data)} bytes, at most {PROBES_BYTES} are allowed"
        found.refuse(Code.PROBE_INVALID, message, PROBES)
        return (), tuple(found)
    if data.count(b"\n") > MAX_PROBE_LINES:
        found.refuse(Code.PROBE_INVALID, f"has more than {MAX_PROBE_LINES} lines", PROBES)
        return (), tuple(found)
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > MAX_PROBES:
        message = f"has {len(lines)} probes, at most {MAX_PROBES} are allowed"
        found.refuse(Code.PROBE_INVALID, message, PROBES)
        return (), tuple(found)
    probes = [_probe(line, f"{PROBES} line {number}", found) for number, line in lines]
    return tuple(p for p in probes if p is not None), tuple(found)


def _probe(line: bytes, where: str, found: FolderFindings) -> Probe | None:
    try:
        value = load_json(line)
    except JsonError as error:
        found.refuse(Code.PROBE_INVALID, str(error), where)
        return None
    problem = _probe_problem(value)
    if problem:
        found.refuse(Code.PROBE_INVALID, problem, where)
        return None
    return Probe(
        prompt=value["prompt"],
        expect=value["expect"],
        match=Match(value.get("match", Match.PREFIX)),
        max_tokens=value.get("max_tokens", 32),
    )


def _probe_problem(value: Any) -> str:
    if not isinstance(value, dict):
        return f"must be an object, is {show(value)}"
    for key in value:
        if key not in PROBE_KEYS:
            return f"unknown key {show(key)}" + (
                nearest(key, PROBE_KEYS) or f"; known: {', '.join(PROBE_KEYS)}"
            )
    for key in ("prompt", "expect"):
        text = value.get(key)
        if not isinstance(text, str) or not text.strip() or len(text) > PROBE_CHARS:
            return f"{key} must be a string of 1 to {PROBE_CHARS} characters, is {show(text)}"
    match, tokens = value.get("match", "prefix"), value.get("max_tokens", 32)
    if not isinstance(match, str) or match not in tuple(Match):
        return f"match must be one of {', '.join(Match)}, is {show(match)}"
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MOST_TOKENS:
        return f"max_tokens must be a whole number from 1 to {MOST_TOKENS}, is {show(tokens)}"
    return ""


# -- report.json


SCHEMA = 2
MOST_REGRESSIONS = 1_000
MOST_ROWS = 5_000  # whose paired test takes a tenth of a second
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_report(path: Path) -> ReportCard | str | None:
    """The report of an adapter folder, or why it cannot be used, or None if there is none. Blocks."""
    try:
        with Folder.open(path) as folder:
            if folder.entry(REPORT) is None:
                return None
            return parse_report(folder.read(REPORT, REPORT_BYTES))
    except FolderError as error:
        return error.message
    except ReportError as error:
        return str(error)


class ReportError(ValueError):
    """The file is no report card; the message says why and is fit for a user."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, slots=True)
class ReportRegression:
    """Something that got worse by `by` (more is worse) where `margin` was allowed."""

    what: str
    by: Interval
    margin: float

    def __str__(self) -> str:
        return f"{show(self.what)} by {self.by}, allowed is {self.margin:.4g}"


@dataclass(frozen=True, slots=True)
class ReportCard:
    """What a report says. Scores and gains: more is better.

    `rows` has the adapter's score of each test row, from 0 to 1; it is empty in reports without that.
    """

    weights_sha256: str
    base_model: str
    base_digest: str
    metric: str
    data_sha256: str
    score: Interval  # of the adapter
    gain: Interval  # adapter - base
    worse: tuple[ReportRegression, ...] = ()
    rows: tuple[float, ...] = ()


def parse_report(data: bytes) -> ReportCard:
    """Read a report card. Raises ReportError and nothing else."""
    try:
        card = load_json(data)
    except JsonError as error:
        raise ReportError(str(error)) from None
    schema = _value_at(card, "schema")
    if isinstance(schema, bool) or schema != SCHEMA:
        raise ReportError(f"schema {show(schema)} is not known here, only {SCHEMA} is")
    return ReportCard(
        weights_sha256=_sha256(card, "adapter", "weights_sha256"),
        base_model=_text(card, "base", "model"),
        base_digest=_text(card, "base", "digest"),
        metric=_text(card, "metric"),
        data_sha256=_sha256(card, "data", "sha256"),
        score=_interval(_value_at(card, "arms", "adapter", "score"), "arms.adapter.score"),
        gain=_interval(_value_at(card, "gains", "adapter - base", "score"), "gains.adapter - base.score"),
        worse=_worse(card),
        rows=_rows(_value_at(card, "arms", "adapter")),
    )


def _rows(arm: Any) -> tuple[float, ...]:
    """Scores by row, where the report has them."""
    listed = arm.get("rows", [])
    if not isinstance(listed, list) or len(listed) > MOST_ROWS:
        raise ReportError(f"arms.adapter.rows must be a list of at most {MOST_ROWS}, is {show(listed)}")
    for place, score in enumerate(listed):
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ReportError(f"arms.adapter.rows[{place}] must be a number from 0 to 1, is {show(score)}")
    return tuple(map(float, listed))


def _worse(card: Any) -> tuple[ReportRegression, ...]:
    listed = _value_at(card, "regressions")
    if not isinstance(listed, list) or len(listed) > MOST_REGRESSIONS:
        raise ReportError(f"regressions must be a list of at most {MOST_REGRESSIONS}, is {show(listed)}")
    found = []
    for place, entry in enumerate(listed):
        where = f"regressions[{place}]"
        regression = ReportRegression(
            _text(entry, "what", at=where), _interval(entry, where), _number(entry, "margin", where)
        )
        worse = _value_at(entry, "worse", at=where)
        if not isinstance(worse, bool):
            raise ReportError(f"{where}.worse must be true or false, is {show(worse)}")
        if worse:
            found.append(regression)
    return tuple(found)


def _value_at(value: Any, *path: str, at: str = "") -> Any:
    for step in path:
        if not isinstance(value, Mapping):
            raise ReportError(f"{at or 'the file'} must be a table, is {show(value)}")
        at = f"{at}.{step}" if at else step
        if step not in value:
            raise ReportError(f"{at} is missing")
        value = value[step]
    return value


def _text(value: Any, *path: str, at: str = "") -> str:
    found = _value_at(value, *path, at=at)
    if not isinstance(found, str):
        raise ReportError(f"{'.'.join(filter(None, (at, *path)))} must be a string, is {show(found)}")
    return found


def _sha256(value: Any, *path: str) -> str:
    found = _text(value, *path)
    if not _SHA256.fullmatch(found):
        raise ReportError(f"{'.'.join(path)} must be a sha256 in hex, is {show(found)}")
    return found


def _number(value: Any, key: str, at: str) -> float:
    found = _value_at(value, key, at=at)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ReportError(f"{at}.{key} must be a number, is {show(found)}")
    try:
        return float(found)
    except OverflowError:
        raise ReportError(f"{at}.{key} must be a number, is {show(found)}") from None


def _interval(value: Any, at: str) -> Interval:
    found = Interval(*(_number(value, key, at) for key in ("value", "low", "high")))
    if found.low > found.high:
        raise ReportError(f"{at}: low {found.low:g} is above high {found.high:g}")
    return found
