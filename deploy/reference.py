"""The tables of settings in docs/cli.md: `python -m deploy.reference` makes them of the pydantic models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from router.config import Settings
from router.plugins import PluginHost

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN, END = "<!-- tables of settings: make reference -->\n", "<!-- end of these tables -->\n"
GROUPS = {  # headings, by the setting that is the first below each
    "listen": "Addresses and access",
    "engine": "Base and engine",
    "adapters_dir": "Adapters and plugins",
    "abstain_threshold": "Routing, corrections and feedback",
    "replicas": "Replicas and edges",
    "experiments": "Experiments",
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


def tables(fields: Mapping[str, FieldInfo]) -> str:
    """All of them, each below its heading."""
    parts = []
    for name, field in fields.items():
        if name in GROUPS:
            parts.append(f"\n### {GROUPS[name]}\n\n{HEAD}")
        parts.append(row(name, field))
    return f"{''.join(parts)}\n{OF_PLUGINS}{HEAD}{''.join(rows_of_plugins())}\n".removeprefix("\n")


def written(page: str) -> str:
    """The page with the tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE} has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{tables(Settings.model_fields)}{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
