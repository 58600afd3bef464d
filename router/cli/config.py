"""`lora-router config show`: every setting, its value and where that comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from router.cli import flags

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file instead of ./lora-router.toml.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its name; repeatable.")
]


def show(config: ConfigFile = None, set_: Sets = None, json: flags.Json = False) -> None:
    """Show every setting and its origin.

    The origin is a flag, the environment, the file or the default.

    \b
    Examples:
      lora-router config show
      LORA_ROUTER_SLOTS=8 lora-router config show --json
    """
    from router.cli.output import print_json, print_table
    from router.cli.settings import load_settings, origin, parse_sets
    from router.config import CONFIG_FILE, Settings

    sets = parse_sets(set_ or [])
    settings = load_settings(sets, config)
    path = config or Path(CONFIG_FILE)
    found = [
        {
            "name": name,
            "value": _shown(getattr(settings, name)),
            "origin": origin(name, sets, path),
            "help": info.description,
        }
        for name, info in Settings.model_fields.items()
    ]
    if json:
        print_json(found)
    else:
        rows = [(s["name"], _text(s["value"]), s["origin"], s["help"] or "") for s in found]
        print_table(["SETTING", "VALUE", "FROM", "MEANING"], rows)


def _shown(value: Any) -> Any:
    """A secret as stars, everything else as it is."""
    from pydantic import SecretStr

    return str(value) if isinstance(value, SecretStr) else value


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
