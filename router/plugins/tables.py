"""The settings of plugins: from lora-router.toml, the environment and flags, checked by a plugin's model."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

ENV_PREFIX = "LORA_ROUTER_"
BETWEEN = "__"  # of a table's name and a key, in the environment


@dataclass(frozen=True, slots=True)
class Value:
    """A setting as it was given. `text`: from a flag or the environment, so a number or list is text, too."""

    value: Any
    origin: str  # flag, environment, or the file's name
    text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """What an operator set of one plugin."""

    values: Mapping[str, Value] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)


def canonical(name: str) -> str:
    """A plugin's name as tables are compared: `-` and `_` are one, and so are upper and lower case."""
    return name.replace("-", "_").lower()


def read_tables(file: Path, environment: Mapping[str, str], flags: Mapping[str, str]) -> dict[str, Table]:
    """All tables by canonical name. `flags`: NAME.KEY to its text. Raises ConfigError for a broken file."""
    found: dict[str, dict[str, Value]] = {}
    for name, values in tables_in(file).items():
        found[canonical(name)] = {key: Value(value, file.name) for key, value in values.items()}
    for variable, text in environment.items():
        name, between, key = variable[len(ENV_PREFIX) :].lower().partition(BETWEEN)
        if variable.upper().startswith(ENV_PREFIX) and between and name and key:
            found.setdefault(name, {})[key] = Value(text, "environment", text=True)
    for pair, text in flags.items():
        name, _, key = pair.partition(".")
        found.setdefault(canonical(name), {})[key.replace("-", "_")] = Value(text, "flag", text=True)
    return {name: Table(values) for name, values in found.items()}


def tables_in(file: Path) -> dict[str, dict[str, Any]]:
    """The tables of a settings file; empty if there is none. Raises ConfigError."""
    if not file.is_file():
        return {}
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    return {name: value for name, value in values.items() if isinstance(value, dict)}


class SettingsRegistrar:
    """The `register` of `register_settings(register)`: checks the plugin's table by its model."""

    def __init__(self, plugin: str, table: Table | None) -> None:
        self.settings: BaseModel | None = None
        self._plugin, self._table = plugin, table or Table()

    def __call__(self, model: type[BaseModel]) -> None:
        """Raises TypeError for what is no model, ValueError for settings that do not fit it."""
        from pydantic import BaseModel, ValidationError

        if not isinstance(model, type) or not issubclass(model, BaseModel):
            raise TypeError(f"register() got {model!r}: pass a subclass of pydantic.BaseModel")
        if self.settings is not None:
            raise ValueError("register() was called twice: a plugin has one table of settings")
        fields, given = model.model_fields, self._table.values
        if unknown := next((key for key in given if key not in fields), None):
            near = difflib.get_close_matches(unknown, fields, 1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"[{self._plugin}] has {', '.join(fields) or 'none'}"
            )
            raise ValueError(
                f"unknown setting {self._plugin}.{unknown} (from {given[unknown].origin}); {hint}"
            )
        try:
            self.settings = model(
                **{k: _parsed(fields[k], v.value) if v.text else v.value for k, v in given.items()}
            )
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                key = str(problem["loc"][0]) if problem["loc"] else ""
                origin = f" (from {given[key].origin})" if key in given else ""
                name = f"{self._plugin}.{key}" if key else self._plugin
                lines.append(f"{name}{origin}: {problem['msg'].removeprefix('Value error, ').lower()}")
            raise ValueError("; ".join(lines)) from None


def _parsed(field: FieldInfo, text: str) -> Any:
    """A text of a flag or the environment: as it is where that fits, else as JSON, else split at commas."""
    from pydantic import TypeAdapter, ValidationError

    kind: TypeAdapter[Any] = TypeAdapter(field.annotation or str)
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
