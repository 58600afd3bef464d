"""The small files beside the weights: `adapter.toml`, `probes.jsonl` and `report.json`.

Everything in them is data: the prompt template is used by literal replacement of `{prompt}` and nothing is
ever evaluated, formatted or compiled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass

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
    MANIFEST_BYTES,
    PROBES_BYTES,
    REPORT_BYTES,
    Code,
    FolderFinding,
    FolderFindings,
    JsonError,
    Place,
    faults,
    load_json,
    named_place,
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

PROMPT_CHARS = 16_000


def _must(fits: Callable[[Any], bool], rule: str) -> AfterValidator:
    def check(value: object) -> object:
        if not fits(value):
            raise ValueError(f"{show(value)} must be {rule}")
        return value

    return AfterValidator(check)


def _within(allowed: Range) -> AfterValidator:
    def check(value: float) -> float:
        if value not in allowed:
            number = "a whole number" if allowed.kind is int else "a number"
            raise ValueError(f"must be {number} in {allowed}, is {show(value)}")
        return value

    return AfterValidator(check)


def _digest(value: str) -> str:
    digest = value.removeprefix("sha256:").lower()
    if digest and re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError("must be a sha256 of 64 hexadecimal digits")
    return digest


def _template(value: str) -> str:
    if problem := PromptTemplate(template=value).problem:
        raise ValueError(problem)
    return value


Str = Annotated[str, Strict()]
Number = Annotated[float, Strict()]
Line = Annotated[Str, _must(str.isprintable, "one line of printable characters")]
Label = Annotated[Str, Field(max_length=63), _must(is_label, LABEL_RULE)]
Text = Annotated[Str, _must(lambda text: bool(text.strip()), "more than white space")]
Example = Annotated[Text, Field(max_length=EXAMPLE_CHARS)]
Keyword = Annotated[Text, Field(max_length=100)]
Stop = Annotated[
    Str, _must(lambda text: 1 <= len(text.encode()) <= MAX_STOP_BYTES, f"1 to {MAX_STOP_BYTES} bytes")
]


class _Table(BaseModel):
    """A table of `adapter.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterTable(_Table):
    """`[adapter]`."""

    name: Annotated[Str, _must(is_name, NAME_RULE)] = ""
    version: Annotated[Str, _must(is_version, VERSION_RULE)] = DEFAULT_VERSION
    description: Annotated[Line, Field(max_length=1_000)] = ""
    domain: Label = ""
    task: Label = ""
    license: Annotated[Line, Field(max_length=200)] = ""


class BasePin(_Table):
    """`[base]`: the base it was trained on. `digest` is lower-case sha256 hex, as BaseInfo.digest."""

    model: Annotated[Line, Field(max_length=256)] = ""
    digest: Annotated[Str, AfterValidator(_digest)] = ""


class PromptTable(_Table):
    """`[prompt]`."""

    system: Annotated[Str, Field(max_length=PROMPT_CHARS)] = ""
    template: Annotated[Str, Field(max_length=PROMPT_CHARS), AfterValidator(_template)] = PLACEHOLDER


class LabelsTable(_Table):
    """`[labels]`."""

    always: Annotated[bool, Strict()] = False
    temperature: Annotated[Number, _within(Range(float, 0.05, 20.0))] | None = None


class RoutingText(_Table):
    """`[routing]`: what classifiers learn from."""

    examples: Annotated[tuple[Example, ...], Field(max_length=1_000)] = ()
    negative_examples: Annotated[tuple[Example, ...], Field(max_length=1_000)] = ()
    keywords: Annotated[tuple[Keyword, ...], Field(max_length=500)] = ()


def _generation_fields() -> dict[str, Any]:
    """The numbers of Sampling in their ranges, and the kinds of constraints, of which one may be given."""
    text = Annotated[Str, Field(max_length=MAX_CONSTRAINT_BYTES)]
    fields: dict[str, Any] = dict.fromkeys(CONSTRAINT_KINDS, (text, None))
    fields["choices"] = (Annotated[tuple[Str, ...], Field(max_length=MAX_CHOICES)], None)
    for name, allowed in SAMPLING_RANGES.items():
        fields[name] = (Annotated[allowed.kind, Strict(), _within(allowed)], None)
    return fields | {"stop": (Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS)], None)}


GenerationTable: type[BaseModel] = create_model("GenerationTable", __base__=_Table, **_generation_fields())


class ManifestFile(_Table):
    """`adapter.toml`."""

    adapter: AdapterTable = AdapterTable()
    base: BasePin = BasePin()
    prompt: PromptTable = PromptTable()
    if TYPE_CHECKING:
        generation: BaseModel
    else:
        generation: GenerationTable = GenerationTable()
    labels: LabelsTable = LabelsTable()
    routing: RoutingText = RoutingText()


TABLES = {
    name: tuple(field.default.__class__.model_fields) for name, field in ManifestFile.model_fields.items()
}


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
    routing: RoutingText = RoutingText()

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
    file = _file({} if data is None else _document(data, found), found)
    generation = _generation(file.generation, found)
    manifest = Manifest(
        **{**file.adapter.model_dump(), "name": file.adapter.name or _name_of(folder_name, found)},
        base=file.base,
        prompt=PromptTemplate(file.prompt.system, file.prompt.template),
        generation=generation,
        labels=_labels(file, generation.constraint, found),
        routing=file.routing,
    )
    return manifest, tuple(found)


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


def _file(document: Mapping[str, Any], found: FolderFindings) -> ManifestFile:
    """The tables without the values that are refused."""
    try:
        return ManifestFile.model_validate(document)
    except ValidationError as error:
        told = set[Place]()
        for fault in faults(error):
            if fault[0][:2] not in told:
                _refuse(*fault, found)
            told.add(fault[0][:2])
        bad = {fault["loc"][:2] for fault in error.errors(include_url=False, include_context=False)}
    return ManifestFile.model_validate(
        {
            name: {key: value for key, value in table.items() if (name, key) not in bad}
            for name, table in document.items()
            if (name,) not in bad
        }
    )


def _refuse(place: Place, kind: str, text: str, found: FolderFindings) -> None:
    table, key = str(place[0]), str(place[-1])
    where = f"{MANIFEST} [{table}]" if table in TABLES else MANIFEST
    if kind == "extra_forbidden":
        known = TABLES.get(table, tuple(TABLES))
        hint = nearest(key, known) or f"; known: {', '.join(known)}"
        what = "key" if table in TABLES else "table or key"
        found.refuse(Code.MANIFEST_UNKNOWN, f"unknown {what} {show(key)}{hint}", where)
    else:
        found.refuse(Code.MANIFEST_VALUE, text, f"{where} {named_place(place[1:])}".rstrip())


def _name_of(folder_name: str, found: FolderFindings) -> str:
    derived = name_from_folder(folder_name)
    if not derived:
        message = f"the folder's name {show(folder_name)} gives no adapter name: {NAME_RULE}"
        found.refuse(Code.NAME_INVALID, message)
    elif derived != folder_name:
        message = f"the folder {show(folder_name)} is served as {derived!r}"
        found.note(Code.NAME_NORMALISED, message)
    return derived


def _generation(table: BaseModel, found: FolderFindings) -> Sampling:
    values = table.model_dump(exclude_unset=True)
    given = {kind: values.pop(kind) for kind in CONSTRAINT_KINDS if kind in values}
    least, most = values.get("min_tokens", 0), values.get("max_tokens", SAMPLING_RANGES["max_tokens"].high)
    if least > most:
        _bad(found, "generation", "min_tokens", f"{least} is more than max_tokens {most}")
    return Sampling(**values, constraint=_constraint(given, found))


def _bad(found: FolderFindings, table: str, key: str, message: str) -> None:
    found.refuse(Code.MANIFEST_VALUE, message, f"{MANIFEST} [{table}] {key}".rstrip())


def _constraint(given: Mapping[Any, Any], found: FolderFindings) -> Constraint | None:
    """What every answer must look like; whether the base can keep to it is seen when the adapter loads."""
    if not given:
        return None
    kind, *others = given
    if others:
        _bad(found, "generation", others[0], f"an answer has one constraint: {kind} is given already")
        return None
    if kind == "choices":
        made = Constraint(kind, choices=given[kind])
    else:
        made = with_closed_objects(Constraint(kind, given[kind]))
    try:
        if kind == "from_prompt":  # whether there is such a template is seen when the adapter loads
            check_form(made)
        else:
            grammar_text(made)
    except InvalidRequest as error:
        _bad(found, "generation", kind, error.violations[0].description)
        return None
    except FailedPrecondition:
        return made  # this environment cannot check it, and refuses the adapter when it loads
    return made


def _labels(file: ManifestFile, constraint: Constraint | None, found: FolderFindings) -> LabelSettings:
    """The settings of labels."""
    table = file.labels
    if constraint is None or constraint.kind != "choices":
        if table.model_fields_set:
            _bad(found, "labels", "", "is for adapters with choices in [generation]")
        return LabelSettings()
    return LabelSettings(table.always, table.temperature)


# -- probes.jsonl


# An adapter serves when its probes have ended, so what they take is bounded.
MOST_TOKENS = 128  # of an answer
PROBE_CHARS = 4_000  # of a prompt, and of what is expected
MOST_LISTED = 256  # probes
MOST_LINES = 4_096

ProbeText = Annotated[Text, Field(max_length=PROBE_CHARS)]


class Match(StrEnum):
    """How an answer is compared with what is expected; surrounding white space never counts."""

    EXACT = "exact"
    PREFIX = "prefix"
    CONTAINS = "contains"


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Probe:
    """A line of probes.jsonl: {"prompt": …, "expect": …}, optionally "match" (exact, prefix or contains;
    prefix is the default) and "max_tokens". It is one prompt and what the adapter, decoding greedily, must
    answer."""

    prompt: ProbeText
    expect: ProbeText
    match: Match = Match.PREFIX
    max_tokens: Annotated[int, Strict(), Field(ge=1, le=MOST_TOKENS)] = 32

    def passes(self, answer: str) -> bool:
        """Whether `answer` is what was expected."""
        got, expected = answer.strip(), self.expect.strip()
        if self.match is Match.EXACT:
            return got == expected
        return got.startswith(expected) if self.match is Match.PREFIX else expected in got


_PROBE = TypeAdapter(Probe)


def parse_probes(data: bytes) -> tuple[tuple[Probe, ...], tuple[FolderFinding, ...]]:
    """Read probes.jsonl. Never raises: a line that is wrong becomes a finding."""
    found = FolderFindings()
    few_lines = data.count(b"\n") <= MOST_LINES
    lines = [one for one in enumerate(data.split(b"\n"), 1) if one[1].strip()] if few_lines else []
    if len(data) > PROBES_BYTES:
        found.refuse(Code.PROBE_INVALID, f"has {len(data)} bytes, at most {PROBES_BYTES} are allowed", PROBES)
    elif not few_lines:
        found.refuse(Code.PROBE_INVALID, f"has more than {MOST_LINES} lines", PROBES)
    elif len(lines) > MOST_LISTED:
        message = f"has {len(lines)} probes, at most {MOST_LISTED} are allowed"
        found.refuse(Code.PROBE_INVALID, message, PROBES)
    if found.refused:
        return (), tuple(found)
    probes: list[Probe] = []
    for number, line in lines:
        try:
            probes.append(_PROBE.validate_python(load_json(line)))
        except JsonError as error:
            found.refuse(Code.PROBE_INVALID, str(error), f"{PROBES} line {number}")
        except ValidationError as error:
            found.refuse(Code.PROBE_INVALID, _first(error), f"{PROBES} line {number}")
    return tuple(probes), tuple(found)


def _first(error: ValidationError) -> str:
    """The first fault with its place."""
    place, kind, text = next(faults(error))
    if kind == "extra_forbidden":
        return f"unknown key {named_place(place)}"
    return f"{named_place(place)} {text}".lstrip()


# -- report.json


MOST_REGRESSIONS = 1_000
MOST_ROWS = 5_000  # whose paired test takes a tenth of a second

Sha256 = Annotated[Str, _must(lambda text: bool(re.fullmatch("[0-9a-f]{64}", text)), "a sha256 in hex")]


def read_report(path: Path) -> ReportCard | str | None:
    """The report of an adapter folder, or why it cannot be used, or None if there is none. Blocks."""
    try:
        with Folder.open(path) as folder:
            if REPORT not in folder.names():
                return None
            return parse_report(folder.read(REPORT, REPORT_BYTES))
    except FolderError as error:
        return error.message
    except ReportError as error:
        return str(error)


class ReportError(ValueError):
    """The file is no report card; the message says why and is fit for a user."""


class Interval(BaseModel):
    """A measured value with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    value: Number
    low: Number
    high: Number

    @model_validator(mode="after")
    def _in_order(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})"


class ReportRegression(Interval):
    """Something that changed by its value, where more is worse and `margin` was allowed."""

    what: Str
    margin: Number
    worse: Annotated[bool, Strict()]

    def __str__(self) -> str:
        return f"{show(self.what)} by {super().__str__()}, allowed is {self.margin:.4g}"


class ReportCard(BaseModel):
    """What a report says. Scores and gains: more is better.

    `rows` has the adapter's score of each test row, from 0 to 1; it is empty in reports without that.
    """

    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Strict(), _must(lambda version: version == 2, "2, the only one known here")] = (
        Field(validation_alias="schema")
    )
    weights_sha256: Sha256 = Field(validation_alias=AliasPath("adapter", "weights_sha256"))
    base_model: Str = Field(validation_alias=AliasPath("base", "model"))
    base_digest: Str = Field(validation_alias=AliasPath("base", "digest"))
    metric: Str
    data_sha256: Sha256 = Field(validation_alias=AliasPath("data", "sha256"))
    score: Interval = Field(validation_alias=AliasPath("arms", "adapter", "score"))
    gain: Interval = Field(validation_alias=AliasPath("gains", "adapter - base", "score"))
    regressions: Annotated[tuple[ReportRegression, ...], Field(max_length=MOST_REGRESSIONS)]
    rows: Annotated[tuple[Annotated[Number, Field(ge=0, le=1)], ...], Field(max_length=MOST_ROWS)] = Field(
        (), validation_alias=AliasPath("arms", "adapter", "rows")
    )

    @property
    def worse(self) -> tuple[ReportRegression, ...]:
        """What got worse beyond its margin."""
        return tuple(one for one in self.regressions if one.worse)


def parse_report(data: bytes) -> ReportCard:
    """Read a report card. Raises ReportError and nothing else."""
    try:
        return ReportCard.model_validate(load_json(data))
    except JsonError as error:
        raise ReportError(str(error)) from None
    except ValidationError as error:
        raise ReportError(_first(error)) from None
