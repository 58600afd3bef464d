"""The settings of plugins: from lora-router.toml, the environment and flags, checked by a plugin's model."""

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

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

ENV_PREFIX = "LORA_ROUTER_"
BETWEEN = "__"  # of a table's name and a key, in the environment


class SettingPlace(IntEnum):
    """Where a setting is given; the greater is the stronger."""

    FILE = 0
    ENVIRONMENT = 1
    FLAG = 2


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A setting as it was given."""

    key: str  # a field of the plugin's model
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


def canonical(name: str) -> str:
    """A plugin's name as tables are compared: `-` and `_` are one, and so are upper and lower case."""
    return name.replace("-", "_").lower()


def read_tables(
    file: Path, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> dict[str, SettingsTable]:
    """All tables by canonical name; `flags` are values by NAME.KEY. Raises ConfigError for a broken file."""
    found: dict[str, list[SettingValue]] = {}
    for name, value in read_toml(file).items():
        if isinstance(value, dict):
            table = found.setdefault(canonical(name), [])
            table += [
                SettingValue(k, v, SettingPlace.FILE, f"{name}.{k}", file.name) for k, v in value.items()
            ]
    for variable, text in environment.items():
        if variable.upper().startswith(ENV_PREFIX):
            plugin, _, key = variable[len(ENV_PREFIX) :].lower().partition(BETWEEN)
            if plugin and key:
                given = SettingValue(key, text, SettingPlace.ENVIRONMENT, variable, "environment")
                found.setdefault(plugin, []).append(given)
    for name, value in flags.items():
        plugin, _, key = name.partition(".")
        given = SettingValue(key.replace("-", "_"), value, SettingPlace.FLAG, name, "flag")
        found.setdefault(canonical(plugin), []).append(given)
    return {name: SettingsTable(values) for name, values in found.items()}


def read_toml(file: Path) -> dict[str, Any]:
    """A settings file; empty if there is none. Raises ConfigError."""
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of too many digits
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


class SettingsRegistrar:
    """The `register` of `register_settings(register)`: checks the plugin's table by its model."""

    def __init__(self, plugin: str, table: SettingsTable | None) -> None:
        self.settings: BaseModel | None = None
        self.origins: dict[str, str] = {}  # of the fields that are set
        self._plugin, self._table = plugin, table or SettingsTable()

    def __call__(self, model: type[BaseModel]) -> None:
        """Raises TypeError for what is no model, ValueError for settings that do not fit."""
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
        """The strongest value of each field that has one. Raises ValueError."""
        found: dict[str, SettingValue] = {}
        for one in sorted(self._table.values, key=lambda value: value.place):
            if one.key not in fields:
                raise ValueError(self._unknown(one, fields))
            before = found.get(one.key)
            if before is not None and before.place is one.place:  # such as [my-log] and [my_log]
                raise ValueError(
                    f"{before.name} and {one.name} (from {one.origin}) are one setting: give one"
                )
            found[one.key] = one
        return found

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
                name = f"{name} (from {one.origin})"
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ').lower()}")
        return "; ".join(lines)


def _adapter(field: FieldInfo) -> Any:
    from pydantic import TypeAdapter

    kind: Any = field.annotation or str
    return TypeAdapter(Annotated[(kind, *field.metadata)] if field.metadata else kind)


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
