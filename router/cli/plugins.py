"""`lora-router plugins list|doctor|new`: classifier plugins of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.plugins import PluginHost, PluginStatus

Dirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugins-dir", metavar="DIR", help="Folder of plugin files; repeatable. Default: ./plugins."
    ),
]


def load_plugins(dirs: list[Path] | None) -> PluginHost:
    """Load the plugins that `serve` would load here."""
    from router.cli.folders import folders
    from router.cli.settings import load_settings
    from router.plugins import PluginHost

    settings = load_settings({"plugins_dir": tuple(dirs)} if dirs else None)
    host = PluginHost(folders(settings.plugins_dir, "plugins"), settings.load_plugins)
    host.refresh()
    return host


def list_(plugins_dir: Dirs = None, json: flags.Json = False) -> None:
    """List plugins, their classifiers and judges.

    Broken ones are shown with the reason.

    \b
    Example:
      lora-router plugins list --plugins-dir ./plugins
    """
    from router.cli.output import print_json, print_table

    found = load_plugins(plugins_dir).status()
    if json:
        print_json(found)
    elif found:
        print_table(
            ["PLUGIN", "STATE", "CLASSIFIER", "PRIORITY", "TIMEOUT", "SOURCE", "NOTE"],
            [row for plugin in found for row in rows(plugin)],
        )
    else:
        print("no plugins; write one with `lora-router plugins new NAME`")


def rows(plugin: PluginStatus) -> list[tuple[str, ...]]:
    """A line for each classifier and judge, at least one for each plugin."""
    state = "broken" if plugin.error else "loaded" if plugin.enabled else "off"
    off = [
        f"{c.name} is off: name its plugin in load_plugins" for c in plugin.classifiers if c.state == "off"
    ]
    note = "; ".join(filter(None, [plugin.error, *plugin.warnings, *off]))
    parts = [(c.name, str(c.priority), f"{c.timeout_ms} ms") for c in plugin.classifiers]
    parts += [(j.name, "judge", f"{j.timeout_ms} ms") for j in plugin.judges]
    return [
        (plugin.name, state, *part, plugin.path or plugin.source, note) for part in parts or [("", "", "")]
    ]


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin and its classifier.")],
    adapter: Annotated[
        str,
        typer.Option("--adapter", "-a", metavar="ADAPTER", help="Adapter (or domain, or task) to vote for."),
    ] = "medical",
    plugins_dir: Annotated[
        Path, typer.Option("--plugins-dir", metavar="DIR", help="Folder for the plugin file.")
    ] = Path("plugins"),
    tests_dir: Annotated[
        Path, typer.Option("--tests-dir", metavar="DIR", help="Folder for its test.")
    ] = Path("tests"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write a new classifier and its test.

    \b
    Example:
      lora-router plugins new contracts --adapter legal
    """
    from router.cli.scaffold import write_plugin

    plugin, test = write_plugin(name, adapter, plugins_dir, tests_dir, force)
    print(f"wrote {plugin}\nwrote {test}\n\ntry it:\n  python -m pytest {test}")
    print(f'  lora-router route "something about {name.replace("-", " ").replace("_", " ")}"')
    print(f"\na server that watches {plugins_dir} asks it from the next request on")


def doctor(plugins_dir: Dirs = None, json: flags.Json = False) -> None:
    """Try every plugin as a server would.

    Load, warm up, fit, odd texts, batches against single calls, repetition, speed. Exit code 1 if anything
    does not work; what works worse than it could is a warning.

    \b
    Example:
      lora-router plugins doctor --plugins-dir ./plugins
    """
    from router.cli.output import print_json, print_table
    from router.plugins.doctor import doctor as examine

    host = load_plugins(plugins_dir)
    findings = examine(host)
    if json:
        print_json(findings)
    elif findings:
        lines = [(f.level, f.plugin, f.classifier, f.check, f.message) for f in findings]
        print_table(["", "PLUGIN", "CLASSIFIER", "CHECK", "WHAT IS WRONG"], lines)
    else:
        print(f"nothing is wrong with {', '.join(r.name for r in host.registrations()) or 'no plugin'}")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)
