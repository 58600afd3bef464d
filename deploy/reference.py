"""`python -m deploy.reference` writes docs/reference.md and the tables of docs/cli.md.

Those are of commands of the command line, and of settings of the pydantic models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from deploy.interfaces import REFERENCE, page
from router.cli.main import app
from router.config import Settings
from router.plugins import PluginHost

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN, END = "<!-- tables of {}: make reference -->\n", "<!-- end of the tables of {} -->\n"
ALONE = ("ask", "chat", "serve", "replica", "compare")  # commands that belong to no group, in this order
SHARED = ("--help", "--json", "--server", "--timeout")  # options that most commands have
GROUPS = {  # headings, by the setting that is the first below each
    "listen": "Addresses and access",
    "engine": "Base and engine",
    "adapters_dir": "Adapters and plugins",
    "abstain_threshold": "Routing",
    "replicas": "Replicas and edges",
    "database": "Database",
    "max_tokens_limit": "Requests, shutdown and logs",
}
OF_PLUGINS = """\
### Built-in plugins

Set them with `--set NAME.KEY=VALUE`, as `LORA_ROUTER_NAME__KEY` (two underscores), or in the table `[NAME]`
of the file.

"""
HEAD = "| setting | default | meaning |\n|---|---|---|\n"


def row(name: str, field: FieldInfo) -> str:
    """One setting."""
    default = "" if field.default in (None, (), "") else f"`{str(field.default).lower()}`"
    return f"| `{name}` | {default} | {field.description} |\n"


def rows_of_plugins() -> Iterator[str]:
    """The settings of built-in plugins as PLUGIN.KEY, by plugin."""
    host = PluginHost([], built_in=True)
    host.refresh()
    tables = {plugin.name: loaded.settings for loaded, plugin in host.running().items() if loaded.settings}
    for plugin, table in sorted(tables.items()):
        for name, field in type(table).model_fields.items():
            yield row(f"{plugin}.{name}", field)


def all_commands() -> dict[str, Any]:
    """Commands by what is typed, those of built-in plugins included; of a group, all below it."""
    root: Any = typer.main.get_command(app)
    root.list_commands(typer.Context(root))

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield name, command
        for child, found in (children or {}).items():
            yield from below(f"{name} {child}", found)

    groups = sorted(name for name in root.commands if name not in ALONE)
    return {name: found for top in (*ALONE, *groups) for name, found in below(top, root.commands[top])}


def options(command: Any) -> list[str]:
    """Its options, but for those that most commands have; of an option that can be turned off, both."""
    names = [
        name
        for parameter in command.get_params(typer.Context(command))
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--") and not getattr(parameter, "hidden", False)
    ]
    return [name for name in names if name not in SHARED]


def commands() -> str:
    """All commands, with the first sentence of their help and their options."""
    parts = ["| command | does | options |\n|---|---|---|\n"]
    for name, command in all_commands().items():
        does = " ".join(str(command.help).partition("\n\n")[0].split())
        parts.append(f"| `{name}` | {does} | {', '.join(f'`{one}`' for one in options(command))} |\n")
    return f"{''.join(parts)}\n"


def settings(fields: Mapping[str, FieldInfo]) -> str:
    """All settings, each below its heading."""
    parts = []
    for name, field in fields.items():
        if name in GROUPS:
            parts.append(f"\n### {GROUPS[name]}\n\n{HEAD}")
        parts.append(row(name, field))
    return f"{''.join(parts)}\n{OF_PLUGINS}{HEAD}{''.join(rows_of_plugins())}\n".removeprefix("\n")


def written(page: str) -> str:
    """The page with the tables as they are now. Raises ValueError where it has no place for them."""
    for what, made in (("commands", commands()), ("settings", settings(Settings.model_fields))):
        begin, end = BEGIN.format(what), END.format(what)
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{PAGE} has no lines {begin.strip()!r} and {end.strip()!r}")
        page = f"{before}{begin}\n{made}{end}{after}"
    return page


def main() -> None:
    """Write both pages."""
    REFERENCE.write_text(page(), encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
