"""`lora-router config show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.cli import flags
from router.cli.output import print_json, print_table
from router.cli.settings import ConfigFile, Sets, load_settings, origin, parse_sets

if TYPE_CHECKING:
    from router.config import Settings


def show(config: ConfigFile = None, set_: Sets = None, json: flags.Json = False) -> None:
    """Show every setting and its origin, also those of plugins, as PLUGIN.KEY.

    The origin is a flag, the environment, the file or the default.

    \b
    Examples:
      lora-router config show
      LORA_ROUTER_SLOTS=8 lora-router config show --json
    """
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
    found += settings_of_plugins(settings)
    if json:
        print_json(found)
    else:
        rows = [(s["name"], _text(s["value"]), s["origin"], s["help"] or "") for s in found]
        print_table(["SETTING", "VALUE", "FROM", "MEANING"], rows)


def settings_of_plugins(settings: Settings) -> list[dict[str, Any]]:
    """The tables of the plugins that a server with these settings has. Broken plugins are named on stderr.

    Raises ConfigError for settings of a plugin that is not there.
    """
    from router.cli.plugins import plugins_with

    host = plugins_with("register_settings", settings)
    host.check_tables()
    for status in host.status():
        if status.error:
            print(f"plugin {status.name} is broken: {status.error}", file=sys.stderr)
    return [
        {
            "name": f"{plugin.name}.{key}",
            "value": _shown(getattr(loaded.settings, key)),
            "origin": loaded.origins.get(key, "default"),
            "help": info.description,
        }
        for loaded, plugin in sorted(host.running().items(), key=lambda item: item[1].name)
        if loaded.settings is not None
        for key, info in type(loaded.settings).model_fields.items()
    ]


def _shown(value: Any) -> Any:
    """A secret as stars, also the password in a URL; everything else as it is."""
    from pydantic import SecretStr

    if isinstance(value, str) and "://" in value:
        return _without_password(value)
    return str(value) if isinstance(value, SecretStr) else value


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    who, at, host = place.rpartition("@")
    user, colon, _ = who.partition(":")
    path, question, query = path.partition("?")
    options = [name if name.partition("=")[0] != "password" else "password=***" for name in query.split("&")]
    shown = f"{user}:***" if colon else who
    return f"{scheme}://{shown}{at}{host}{slash}{path}{question}{'&'.join(options)}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
