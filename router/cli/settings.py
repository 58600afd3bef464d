"""Settings for the commands: where each value comes from, one line for each mistake, and `config show`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.built_in import built_in_folders, is_built_in_folder
from router.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from router.config import Settings
    from router.routing.calibration import Calibration
    from router.routing.in_force import CalibrationFile, RuleInForce

ENV_PREFIX = "LORA_ROUTER_"
# Read by commands, not by Settings.
NO_SETTINGS = (
    *("server", "insecure_listen", "insecure_metrics", "traceback"),
    *("token", "tls_ca", "client_cert", "client_key"),
)
# What Kubernetes sets in every pod for a Service called lora-router, or lora-router-anything.
KUBERNETES = re.compile(
    r"LORA_ROUTER_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file instead of ./lora-router.toml.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its name; repeatable.")
]


def load_settings(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Flag > LORA_ROUTER_* > file > default. Raises ConfigError.

    A flag called NAME.KEY is a plugin's.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsConfigDict

    from router.config import CONFIG_FILE, Settings
    from router.plugins.tables import read_tables

    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: no such file; --config names a TOML file such as {CONFIG_FILE}")
    path = config or Path(CONFIG_FILE)
    check_tables(path)
    check_environment(os.environ)

    class Located(Settings):
        """The same settings, read from the file that was named."""

        model_config = SettingsConfigDict(toml_file=path)

    given = flags or {}
    of_plugins = {name: value for name, value in given.items() if "." in name}
    try:
        found = Located(**{name: value for name, value in given.items() if name not in of_plugins})
        return found.with_tables(read_tables(path, os.environ, of_plugins))
    except ValidationError as error:
        raise ConfigError(_first_line(error, flags or {}, path)) from None


def check_tables(path: Path) -> None:
    """Raises ConfigError for a settings file whose tables are not called as plugins are."""
    from router.plugins.tables import read_toml

    if "plugins" in read_toml(path):
        raise ConfigError(f"{path}: [plugins.NAME] is no table: settings of the plugin NAME are in [NAME]")


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable with our prefix that sets nothing, with the nearest setting's."""
    from router.config import Settings

    known = [name.upper() for name in (*Settings.model_fields, *NO_SETTINGS)]
    for key in environment:
        prefix, name = key[: len(ENV_PREFIX)].upper(), key[len(ENV_PREFIX) :].upper()
        of_plugin = "__" in name.strip("_")
        if prefix != ENV_PREFIX or name in known or of_plugin or KUBERNETES.fullmatch(key):
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {ENV_PREFIX}{near[0]}?" if near else "`lora-router config show` lists all settings"
        )
        raise ConfigError(f"environment: {key} sets nothing; {hint}")


def _first_line(error: ValidationError, flags: Mapping[str, Any], path: Path) -> str:
    lines = []
    for problem in error.errors():
        if not problem["loc"]:  # two settings that do not go together
            lines.append(problem["msg"].removeprefix("Value error, "))
            continue
        name = str(problem["loc"][0])
        where = origin(name, flags, path)
        unknown = problem["type"] == "extra_forbidden"
        lines.append(_unknown(name, where) if unknown else f"{name} (from {where}): {problem['msg'].lower()}")
    return "; ".join(lines)


def _unknown(name: str, where: str) -> str:
    """`unknown setting max_runing (from flag); did you mean 'max_running'?`"""
    from router.config import Settings

    near = difflib.get_close_matches(name, Settings.model_fields, 1)
    hint = f"did you mean {near[0]!r}?" if near else "`lora-router config show` lists all"
    return f"unknown setting {name} (from {where}); {hint}"


def origin(name: str, flags: Mapping[str, Any], path: Path) -> str:
    """Where a setting's value comes from: flag, environment, the file's name or default."""
    if name in flags:
        return "flag"
    if any(key.upper() == ENV_PREFIX + name.upper() for key in os.environ):
        return "environment"
    from router.plugins.tables import read_toml

    return path.name if name in read_toml(path) else "default"


def parse_sets(pairs: Sequence[str]) -> dict[str, str]:
    """`--set KEY=VALUE`, for the settings that have no flag of their own; NAME.KEY is a plugin's."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, not {pair!r}")
        values[key.strip().replace("-", "_")] = value.strip()
    return values


# -- folders of adapters and plugins: those that are named, else ./NAME and the built-in ones


def adapter_folders(settings: Settings) -> tuple[Path, ...]:
    """The adapters folders that a server with these settings watches; see `folders`."""
    return folders(settings.adapters_dir, "adapters", settings.bare)


def folders(named: Sequence[Path], name: str, bare: bool) -> tuple[Path, ...]:
    """The folders of `name`, which is adapters or plugins: what is in the first overrides what is built in.

    Without `bare` these are ./NAME and the built-in folder; with it ./NAME stands alone, and where there is
    no ./plugins the built-in plugins stay. Folders that are named stand alone. Raises ConfigError for a named
    folder that is not there.
    """
    for folder in named:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; create it, or leave out --{name}-dir for ./{name}")
    if named:
        return tuple(named)
    here = tuple(one for one in (Path(name),) if one.is_dir())
    alone = here or name == "adapters"  # without ./plugins, nothing would choose an adapter
    if (bare and alone) or (here and is_built_in_folder(here[0], name)):
        return here
    return (*here, *built_in_folders(name))


def rule_of(settings: Settings, calibration: CalibrationFile | None = None) -> RuleInForce:
    """The rule of a server with these settings, with the calibration of that file (None: of the settings)."""
    from router.routing.in_force import RuleInForce
    from router.routing.policy import Rule

    used = load_calibration(settings) if calibration is None else calibration.value()
    return RuleInForce(Rule(settings.abstain_threshold), used)


def calibration_file(settings: Settings) -> CalibrationFile:
    """The calibration of a server, read again when its file changes. Where there is none, one may come; one
    that was there and is gone stays in force. Raises ConfigError as `load_calibration` does."""
    from router.reread import Reread
    from router.routing.calibration import FILE_NAME

    location = settings.calibration
    named = [Path(location)] if location else []
    paths = [folder / FILE_NAME for folder in settings.adapters_dir] if location == "auto" else named
    had: list[Path] = []

    def read() -> Calibration | None:
        if had and find_calibration(location, settings.adapters_dir) is None:
            raise ConfigError(f"{had[0]} is gone; start the server again to serve without it")
        found = load_calibration(settings)
        path = find_calibration(location, settings.adapters_dir)
        had[:] = [path] if path is not None else []
        return found

    return Reread(paths, read)


def load_calibration(settings: Settings) -> Calibration | None:
    """For the targets of the settings. Raises ConfigError if the file is missing, damaged or of another
    version, or cannot keep such a target."""
    from router.routing.calibration import read_calibration

    path = find_calibration(settings.calibration, settings.adapters_dir)
    return read_calibration(path) if path else None


def find_calibration(location: str, adapters: Sequence[Path]) -> Path | None:
    """The file that was said; with `auto` the first calibration.json in an adapters folder; none if empty."""
    from router.routing.calibration import FILE_NAME

    if location != "auto":
        return Path(location) if location else None
    return next((folder / FILE_NAME for folder in adapters if (folder / FILE_NAME).is_file()), None)
