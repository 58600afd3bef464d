"""The settings of plugins: from lora-router.toml, the environment and flags, checked by a plugin's model.

A setting may have old names (`router.Formerly`). The strongest place that has it under any of its names wins;
two names in one place must have the same value.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from router.errors import ConfigError
from router.hookspecs import Formerly

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

ENV_PREFIX = "LORA_ROUTER_"
BETWEEN = "__"  # of a table's name and a key, in the environment
# Settings of the server that went to a built-in plugin, where they are old names of fields. They are known
# here without the plugin, so that no command imports it for a name, and that a missing one can be named.
MOVED = {
    "console": "console",
    "kserve": "kserve",
    "metrics_compat": "vllm_names",
    "mirror_cache_mb": "mirrors",
    "mirror_seconds": "mirrors",
    "mirror_wait_seconds": "mirrors",
    "otlp_endpoint": "otel",
}


class SettingPlace(IntEnum):
    """Where a setting is given; the greater is the stronger."""

    FILE = 0
    ENVIRONMENT = 1
    FLAG = 2


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting as it was given."""

    key: str  # a field of the plugin's model, or an old name of one
    value: Any
    place: SettingPlace
    name: str  # in full, as it was written
    origin: str  # flag, environment, or the file's name

    @property
    def text(self) -> bool:
        """Whether a number or a list is text, too."""
        return self.place is not SettingPlace.FILE and isinstance(self.value, str)


@dataclass(frozen=True, slots=True)
class SettingsTable:
    """What an operator set of one plugin."""

    values: Sequence[SettingValue] = ()

    def __bool__(self) -> bool:
        return bool(self.values)

    @classmethod
    def of_json(cls, values: Sequence[Mapping[str, Any]]) -> SettingsTable:
        """From what `to_json` returned."""
        return cls([SettingValue(**{**one, "place": SettingPlace(one["place"])}) for one in values])

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, for another process."""
        return [asdict(one) for one in self.values]


class NamesDisagree(ValueError):
    """A setting has two values under two of its names."""


def canonical(name: str) -> str:
    """A plugin's name as tables are compared: `-` and `_` are one, and so are upper and lower case."""
    return name.replace("-", "_").lower()


def read_tables(
    file: Path, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> dict[str, SettingsTable]:
    """All tables by canonical name. Raises ConfigError for a broken file.

    `flags` are values by NAME.KEY, or by a name in `MOVED`.
    """
    found: dict[str, list[SettingValue]] = {}
    for name, value in read_toml(file).items():
        if isinstance(value, dict):
            table = found.setdefault(canonical(name), [])
            table += [
                SettingValue(k, v, SettingPlace.FILE, f"{name}.{k}", file.name) for k, v in value.items()
            ]
        elif name in MOVED:
            found.setdefault(MOVED[name], []).append(
                SettingValue(name, value, SettingPlace.FILE, name, file.name)
            )
    for variable, text in environment.items():
        if variable.upper().startswith(ENV_PREFIX):
            plugin, key = _plugin_and_key(variable[len(ENV_PREFIX) :].lower(), BETWEEN)
            if plugin and key:
                given = SettingValue(key, text, SettingPlace.ENVIRONMENT, variable, "environment")
                found.setdefault(plugin, []).append(given)
    for name, value in flags.items():
        plugin, key = _plugin_and_key(name, ".")
        given = SettingValue(key.replace("-", "_"), value, SettingPlace.FLAG, name, "flag")
        found.setdefault(canonical(plugin), []).append(given)
    return {name: SettingsTable(values) for name, values in found.items()}


def _plugin_and_key(name: str, between: str) -> tuple[str, str]:
    """Empty for the name of no plugin's setting."""
    if name in MOVED:
        return MOVED[name], name
    plugin, found, key = name.partition(between)
    return (plugin, key) if found else ("", "")


def read_toml(file: Path) -> dict[str, Any]:
    """A settings file; empty if there is none. Raises ConfigError."""
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of too many digits
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def old_names(field: FieldInfo) -> tuple[str, ...]:
    """The old names of a field of a plugin's model."""
    return tuple(name for one in field.metadata if isinstance(one, Formerly) for name in one.names)


class SettingsRegistrar:
    """The `register` of `register_settings(register)`: checks the plugin's table by its model."""

    def __init__(self, plugin: str, table: SettingsTable | None) -> None:
        self.settings: BaseModel | None = None
        self.origins: dict[str, str] = {}  # of the fields that are set
        self.renamed: list[str] = []  # warnings of old names in the file
        self._plugin, self._table = plugin, table or SettingsTable()

    def __call__(self, model: type[BaseModel]) -> None:
        """Raises TypeError for what is no model, ValueError for settings that do not fit, NamesDisagree."""
        from pydantic import BaseModel, ValidationError

        if not isinstance(model, type) or not issubclass(model, BaseModel):
            raise TypeError(f"register() got {model!r}: pass a subclass of pydantic.BaseModel")
        if self.settings is not None:
            raise ValueError("register() was called twice: a plugin has one table of settings")
        given = self._given(model.model_fields)
        try:
            self.settings = model(
                **{key: _parsed(model.model_fields[key], one) for key, one in given.items()}
            )
        except ValidationError as error:
            raise ValueError(self._explained(error, given)) from None
        self.origins = {key: one.origin for key, one in given.items()}

    def _given(self, fields: Mapping[str, FieldInfo]) -> dict[str, SettingValue]:
        """The strongest value of each field that has one."""
        names = {name: key for key, field in fields.items() for name in (key, *old_names(field))}
        found: dict[str, list[SettingValue]] = {}
        for one in self._table.values:
            if one.key not in names:
                raise ValueError(self._unknown(one, fields))
            key = names[one.key]
            found.setdefault(key, []).append(one)
            if one.place is SettingPlace.FILE and one.key != key:
                new = f"{self._plugin}.{key}"
                self.renamed.append(
                    f"{one.origin}: {one.name} is an old name of {new}: write {key} in [{self._plugin}]"
                )
        return {key: _strongest(fields[key], values) for key, values in found.items()}

    def _unknown(self, one: SettingValue, fields: Iterable[str]) -> str:
        near = difflib.get_close_matches(one.key, list(fields), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"[{self._plugin}] has {', '.join(fields) or 'none'}"
        return f"unknown setting {self._plugin}.{one.key} (from {one.origin}); {hint}"

    def _explained(self, error: ValidationError, given: Mapping[str, SettingValue]) -> str:
        lines = []
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else ""
            name = f"{self._plugin}.{key}" if key else self._plugin
            if (one := given.get(key)) is not None:
                name = f"{name if one.key == key else one.name} (from {one.origin})"
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ').lower()}")
        return "; ".join(lines)


def _strongest(field: FieldInfo, values: Sequence[SettingValue]) -> SettingValue:
    """The value of the strongest place. Raises NamesDisagree."""
    place = max(one.place for one in values)
    first, *others = (one for one in values if one.place is place)
    for other in others:
        if _validated(field, other) != _validated(field, first):
            raise NamesDisagree(
                f"{first.name} and {other.name} (from {first.origin}) are names of one setting and have two "
                "values: give one"
            )
    return first


def _adapter(field: FieldInfo) -> Any:
    from pydantic import TypeAdapter

    kind: Any = field.annotation or str
    return TypeAdapter(Annotated[(kind, *field.metadata)] if field.metadata else kind)


def _validated(field: FieldInfo, one: SettingValue) -> Any:
    """As the model has it; as it is given where it does not fit."""
    from pydantic import ValidationError

    value = _parsed(field, one)
    try:
        return _adapter(field).validate_python(value)
    except ValidationError:
        return value


def _parsed(field: FieldInfo, one: SettingValue) -> Any:
    """A text of a flag or the environment: as it is where that fits, else as JSON, else split at commas."""
    from pydantic import ValidationError

    if not one.text:
        return one.value
    kind, text = _adapter(field), str(one.value)
    try:
        kind.validate_python(text)
    except ValidationError:
        try:
            return json.loads(text)
        except ValueError:
            parts = [part.strip() for part in text.split(",") if part.strip()]
            try:
                kind.validate_python(parts)
            except ValidationError:
                return text
            return parts
    return text
