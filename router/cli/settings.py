"""Settings for the commands: where each value comes from, and one line for each mistake."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from router.config import Settings

ENV_PREFIX = "LORA_ROUTER_"
NO_SETTINGS = ("server", "insecure_listen", "traceback")  # read by commands, not by Settings
# What Kubernetes sets in every pod for a Service called lora-router, or lora-router-anything.
KUBERNETES = re.compile(
    r"LORA_ROUTER_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Flag > LORA_ROUTER_* > file > default. Raises ConfigError."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsConfigDict

    from router.config import CONFIG_FILE, Settings

    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: no such file; --config names a TOML file such as {CONFIG_FILE}")
    path = config or Path(CONFIG_FILE)
    read_file(path)
    check_environment(os.environ)

    class Located(Settings):
        """The same settings, read from the file that was named."""

        model_config = SettingsConfigDict(toml_file=path)

    try:
        return Located(**dict(flags or {}))
    except ValidationError as error:
        raise ConfigError(_first_line(error, flags or {}, path)) from None


def read_file(path: Path) -> dict[str, Any]:
    """The file's values; empty if there is none. An unknown key is an error with the nearest name."""
    from router.config import Settings

    if not path.is_file():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(f"{path}: {unknown(key, Settings.model_fields)}")
    return values


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable with our prefix that sets nothing, with the nearest setting's."""
    from router.config import Settings

    known = [name.upper() for name in (*Settings.model_fields, *NO_SETTINGS)]
    for key in environment:
        prefix, name = key[: len(ENV_PREFIX)].upper(), key[len(ENV_PREFIX) :].upper()
        if prefix != ENV_PREFIX or name in known or KUBERNETES.fullmatch(key):
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {ENV_PREFIX}{near[0]}?" if near else "`lora-router config show` lists all settings"
        )
        raise ConfigError(f"environment: {key} sets nothing; {hint}")


def unknown(key: str, known: Mapping[str, Any]) -> str:
    """`unknown setting 'max_runing'; did you mean 'max_running'?`"""
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "`lora-router config show` lists all"
    return f"unknown setting {key!r}; {hint}"


def _first_line(error: ValidationError, flags: Mapping[str, Any], path: Path) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        lines.append(f"{name} (from {origin(name, flags, path)}): {problem['msg'].lower()}")
    return "; ".join(lines)


def origin(name: str, flags: Mapping[str, Any], path: Path) -> str:
    """Where a setting's value comes from: flag, environment, the file's name or default."""
    if name in flags:
        return "flag"
    if any(key.upper() == ENV_PREFIX + name.upper() for key in os.environ):
        return "environment"
    return path.name if name in read_file(path) else "default"


def parse_sets(pairs: Sequence[str]) -> dict[str, str]:
    """`--set KEY=VALUE`, for the settings that have no flag of their own."""
    from router.config import Settings

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, not {pair!r}")
        if key not in Settings.model_fields:
            raise ConfigError(unknown(key, Settings.model_fields))
        values[key] = value.strip()
    return values
