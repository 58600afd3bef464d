"""`adapter.toml`, the optional manifest of an adapter folder.

Everything in it is data: the prompt template is used by literal replacement of `{prompt}` and nothing is
ever evaluated, formatted or compiled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from router.engine.constrained.source import grammar_text
from router.errors import FailedPrecondition, InvalidRequest
from router.names import name_from_folder
from router.registry.format import limits
from router.registry.format.findings import Code, Finding, Findings
from router.registry.format.folder import MANIFEST
from router.registry.format.names import (
    DEFAULT_VERSION,
    LABEL_RULE,
    NAME_RULE,
    VERSION_RULE,
    is_label,
    is_name,
    is_version,
)
from router.registry.format.parsing import toml_too_complex
from router.registry.format.text import nearest, show
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
    PromptTemplate,
    Sampling,
)

KEYS: dict[str, tuple[str, ...]] = {
    "adapter": ("name", "version", "description", "domain", "task", "license"),
    "base": ("model", "digest"),
    "prompt": ("system", "template"),
    "generation": (*(f.name for f in fields(Sampling) if f.name != "constraint"), *CONSTRAINT_KINDS),
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
        )


def parse_manifest(data: bytes | None, folder_name: str) -> tuple[Manifest, tuple[Finding, ...]]:
    """Read a manifest; `data` None means that there is none. Never raises: all problems are findings.

    A refused value is left at its default, so that the rest of the folder can still be checked.
    """
    found = Findings()
    tables = {} if data is None else _tables(data, found)
    at = {name: Table(name, tables.get(name, {}), keys, found) for name, keys in KEYS.items()}
    manifest = Manifest(
        name=_name(at["adapter"], folder_name, found),
        version=at["adapter"].text("version", 63, _version) or DEFAULT_VERSION,
        description=at["adapter"].text("description", 1_000, _one_line),
        domain=at["adapter"].text("domain", 63, _label_rule),
        task=at["adapter"].text("task", 63, _label_rule),
        license=at["adapter"].text("license", 200, _one_line),
        base=BasePin(at["base"].text("model", 256, _one_line), _digest(at["base"])),
        prompt=_prompt(at["prompt"]),
        generation=_generation(at["generation"]),
        routing=_routing(at["routing"]),
    )
    return manifest, tuple(found)


def _tables(data: bytes, found: Findings) -> Mapping[str, Mapping[str, Any]]:
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


def _document(data: bytes, found: Findings) -> Mapping[str, Any]:
    problem = ""
    try:
        if len(data) > limits.MANIFEST_BYTES:
            problem = f"has {len(data)} bytes, at most {limits.MANIFEST_BYTES} are allowed"
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


def _name(table: Table, folder_name: str, found: Findings) -> str:
    name = table.text("name", 63, _name_rule)
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


def _name_rule(value: str) -> str:
    return "" if is_name(value) else f"{show(value)} must be {NAME_RULE}"


def _label_rule(value: str) -> str:
    return "" if is_label(value) else f"{show(value)} must be {LABEL_RULE}"


def _version(value: str) -> str:
    return "" if is_version(value) else f"{show(value)} must be {VERSION_RULE}"


def _digest(table: Table) -> str:
    digest = table.text("digest", 71).removeprefix("sha256:").lower()
    if digest and re.fullmatch("[0-9a-f]{64}", digest) is None:
        table.bad("digest", "must be a sha256 of 64 hexadecimal digits")
        return ""
    return digest


def _prompt(table: Table) -> PromptTemplate:
    return PromptTemplate(
        system=table.text("system", limits.PROMPT_CHARS),
        template=table.text("template", limits.PROMPT_CHARS, _template) or PLACEHOLDER,
    )


def _template(value: str) -> str:
    return PromptTemplate(template=value).problem


def _routing(table: Table) -> RoutingText:
    return RoutingText(
        examples=table.texts("examples", limits.EXAMPLES, limits.EXAMPLE_CHARS),
        negative_examples=table.texts("negative_examples", limits.EXAMPLES, limits.EXAMPLE_CHARS),
        keywords=table.texts("keywords", limits.KEYWORDS, limits.KEYWORD_CHARS),
    )


# -- [generation]


def _generation(table: Table) -> Sampling:
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


def _constraint(table: Table) -> Constraint | None:
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
        made = Constraint(kind, table.text(kind, MAX_CONSTRAINT_BYTES))
    try:
        grammar_text(made)
    except InvalidRequest as error:
        table.bad(kind, error.violations[0].description)
        return None
    except FailedPrecondition:
        return made  # this environment cannot check it, and refuses the adapter when it loads
    return made


def _stops(table: Table) -> tuple[str, ...]:
    stops = table.strings("stop", MAX_STOPS)
    for index, text in enumerate(stops):
        size = len(text.encode("utf-8"))
        if not 1 <= size <= MAX_STOP_BYTES:
            table.bad("stop", f"entry {index} must have 1 to {MAX_STOP_BYTES} bytes, has {size}")
            return ()
    return stops


# -- a table, read with types: every problem becomes a finding, nothing raises


class Table:
    """A `[name]` table of the manifest."""

    def __init__(self, name: str, values: Mapping[str, Any], known: Collection[str], found: Findings) -> None:
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
    """A check for `Table.text`: printable, no line breaks."""
    return "" if value.isprintable() else "must be one line of printable characters"
