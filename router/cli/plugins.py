"""`lora-router plugins list|doctor|new`: plugins of a server or of this folder, and their commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from router.built_in import built_in_modules, name_of
from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.cli.connect import connected
from router.cli.output import print_json, print_table

if TYPE_CHECKING:
    from router.client import Plugin
    from router.config import Settings
    from router.plugins import PluginHost, PluginStatus

BUILT_IN = "built-in"
SHOWN_BELOW = ("register_classifiers",)  # by what they register


def list_(
    server: flags.Server = "",
    timeout: flags.Timeout = 10.0,
    json: flags.Json = False,
) -> None:
    """List the plugins of a server: version, state, hooks and classifiers.

    Built-in ones are listed, too, and broken ones with the reason. Where no server answers and none is named,
    they are those that a server started here would load.

    \b
    Example:
      lora-router plugins list
    """
    found = plugins_of(server, timeout)
    if json:
        print_json(found)
    elif found:
        print_table(
            ["PLUGIN", "STATE", "VERSION", "HOOKS", "CLASSIFIER", "PRIORITY", "TIMEOUT", "SOURCE", "NOTE"],
            [row for plugin in found for row in rows(plugin)],
        )
    else:
        print("no plugins; write one with `lora-router plugins new NAME`")


def plugins_of(server: str, timeout: float) -> Sequence[PluginStatus | Plugin]:
    """What the server has; what is here, with a note on stderr, where none is named and none answers."""
    try:
        with connected(server, timeout) as client:
            return client.adapters.plugins()
    except CliError as error:
        if server:
            raise
        print(f"not asked of a server: {error}", file=sys.stderr)
        print("a server that is started here loads these:", file=sys.stderr)
        return load_plugins().status()


def rows(plugin: PluginStatus | Plugin) -> list[tuple[str, ...]]:
    """A line for each classifier, at least one for each plugin."""
    from router.client.values import PluginClassifier

    state = "broken" if plugin.error else "loaded" if plugin.enabled else "off"
    off = [
        f"{c.name} is off: name its plugin in load_plugins" for c in plugin.classifiers if c.state == "off"
    ]
    if plugin.source == "entry-point" and not plugin.enabled and not plugin.error:
        off.append(f"comes with the package {plugin.package}; name it in installed_plugins to load it")
    states = [
        f"{c.name} is {c.state}" + (f": {c.problem}" if c.problem else "")
        for c in plugin.classifiers
        if isinstance(c, PluginClassifier) and c.state not in ("ready", "off")
    ]
    note = "; ".join(filter(None, [plugin.error, *plugin.warnings, *off, *states]))
    parts = [(c.name, str(c.priority), f"{c.timeout_ms} ms") for c in plugin.classifiers]
    source = BUILT_IN if plugin.built_in else plugin.path or plugin.source
    hooks = ", ".join(hook for hook in plugin.hooks if hook not in SHOWN_BELOW)
    first = (plugin.name, state, plugin.version, hooks)
    return [(*first, *part, source, note) for part in parts or [("", "", "")]]


def doctor(json: flags.Json = False) -> None:
    """Load every plugin as a server would, and test the classifiers.

    Warm up, fit, odd texts, batches against single calls, repetition, speed. Exit code 1 if anything
    does not work; what works worse than it could is a warning.

    \b
    Example:
      lora-router plugins doctor
    """
    from router.plugins.doctor import doctor as examine

    host = load_plugins()
    findings = examine(host)
    if json:
        print_json(findings)
    elif findings:
        lines = [(f.level, f.plugin, f.classifier, f.check, f.message) for f in findings]
        print_table(["", "PLUGIN", "CLASSIFIER", "CHECK", "WHAT IS WRONG"], lines)
    else:
        tried = sorted(p.name for p in host.status() if p.enabled and p.source != BUILT_IN)
        print(f"nothing is wrong with {', '.join(tried) or 'no plugin'}")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


def load_plugins() -> PluginHost:
    """Load the plugins that `serve` would load here."""
    from router.cli.settings import folders, load_settings

    settings = load_settings()
    found = settings.model_copy(
        update={"plugins_dir": folders(settings.plugins_dir, "plugins", settings.bare)}
    )
    host = host_of(found)
    host.refresh()
    return host


def host_of(settings: Settings) -> PluginHost:
    """The plugins of a server with these settings, not loaded yet."""
    from router.plugins import PluginHost

    return PluginHost(
        settings.plugins_dir,
        settings.load_plugins,
        settings.installed_plugins,
        settings.tables,
        built_in=True,
    )


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin and its classifier.")],
    adapter: Annotated[
        str,
        typer.Option("--adapter", "-a", metavar="ADAPTER", help="Adapter (or domain, or task) to vote for."),
    ] = "medical",
) -> None:
    """Write a new classifier into the first plugins folder of the settings, and its test into tests/.

    \b
    Example:
      lora-router plugins new contracts --adapter legal
    """
    from router.cli.settings import load_settings

    plugins_dir = next(iter(load_settings().plugins_dir), Path("plugins"))
    plugin, test = write_plugin(name, adapter, plugins_dir, Path("tests"))
    print(f"wrote {plugin}\nwrote {test}\n\ntry it:\n  python -m pytest {test}")
    print(f'  lora-router route "something about {name.replace("-", " ").replace("_", " ")}"')
    print(f"\na server that watches {plugins_dir} asks it from the next request on")


# -- commands of plugins


COMMANDS = "register_commands"
SETTINGS_FILE = "lora-router.toml"  # router.config.CONFIG_FILE, which imports pydantic


class WithPlugins(TyperGroup):
    """The root of the command line: commands that are not built in, groups and --help look at plugins.

    Only plugins whose code names `register_commands` are imported, and none for other commands.
    """

    _extended = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Those of plugins, too."""
        self._extend()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; a plugin's where no other is called so."""
        found = self.commands.get(cmd_name)
        if found is None or hasattr(found, "commands"):
            self._extend()
        return super().get_command(ctx, cmd_name)

    def _extend(self) -> None:
        if self._extended:
            return
        self._extended = True
        self._extend_by_built_in()
        if not may_have_commands():
            return
        from router.cli.settings import load_settings

        try:
            host = plugins_with(COMMANDS, load_settings())
        except Exception as error:
            print(f"commands of plugins are left out: {error}", file=sys.stderr)
            return
        for status in host.status():
            if status.error and status.source != BUILT_IN:
                print(f"plugin {status.name} is broken: {status.error}", file=sys.stderr)
        for loaded, plugin in host.running().items():
            if plugin.source != BUILT_IN and COMMANDS in loaded.hooks:
                self._add(plugin.name, loaded.hooks[COMMANDS])

    def _extend_by_built_in(self) -> None:
        """Without the plugin host and the settings, which take longer to import than all commands here."""
        for module, path in built_in_modules().items():
            if COMMANDS.encode() not in path.read_bytes():
                continue
            try:
                hook = import_module(module).register_commands
            except Exception as error:
                print(f"plugin {name_of(module)} is broken: {error}", file=sys.stderr)
            else:
                self._add(name_of(module), hook)

    def _add(self, name: str, hook: Callable[..., None]) -> None:
        """Add the commands of a plugin; a fault of its hook costs those that are left."""
        own = typer.Typer(rich_markup_mode=None)
        own.callback()(lambda: None)  # so that one command is a group of one
        try:
            hook(app=own)
            merge(self.commands, typer.main.get_group(own).commands)
        except Exception as error:
            print(f"commands of the plugin {name} are left out: {error}", file=sys.stderr)


def merge(commands: MutableMapping[str, Any], more: Mapping[str, Any]) -> None:
    """Add commands; a group that is there gets what it lacks. Raises CliError for a command that is there."""
    for name, command in more.items():
        there = commands.setdefault(name, command)
        if there is command:
            continue
        if not hasattr(there, "commands") or not hasattr(command, "commands"):
            raise CliError(f"the command {name!r} is there already")
        merge(there.commands, command.commands)


def may_have_commands() -> bool:
    """Whether plugins could add commands here, by a look at files and names of settings."""
    settings = ("PLUGINS_DIR", "INSTALLED_PLUGINS")
    if any(key.upper().removeprefix("LORA_ROUTER_") in settings for key in os.environ):
        return True
    try:
        text = Path(SETTINGS_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    return any(name.lower() in text for name in settings) or bool(naming(COMMANDS, [Path("plugins")]))


def naming(hook: str, folders: Sequence[Path]) -> list[str]:
    """Names of plugins in these folders whose code names the hook."""
    found = []
    for folder in folders:
        files = [(path.stem, path) for path in folder.glob("*.py")]
        for name, path in [*files, *((path.parent.name, path) for path in folder.glob("*/__init__.py"))]:
            if name[0] not in "_." and hook.encode() in path.read_bytes():
                found.append(name)
    return found


def plugins_with(hook: str, settings: Settings) -> PluginHost:
    """The plugins, without files and folders whose code does not name the hook. Raises ConfigError."""
    from router.cli.settings import folders

    dirs = folders(settings.plugins_dir, "plugins", settings.bare)
    names = naming(hook, dirs)
    if settings.load_plugins is not None:
        allowed = {name.strip() for name in settings.load_plugins.split(",")}
        names = [name for name in names if name in allowed]
    host = host_of(settings.model_copy(update={"plugins_dir": dirs, "load_plugins": ",".join(names)}))
    host.refresh()
    return host


# -- the files that `plugins new` writes


NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
PLUGIN = '''\
"""Sends requests that say "{word}" to the adapter {adapter}."""

from router import hookimpl
from router.routing import Classifier, Scores


class {klass}(Classifier):
    name = "{name}"

    def classify_batch(self, requests):
        return [Scores({{"{adapter}": 1.0}}) if "{word}" in r.text.lower() else None for r in requests]


@hookimpl
def register_classifiers(register):
    register({klass}(), priority=100, timeout_ms=20)
'''
TEST = """\
from pathlib import Path

from router.testing import ClassifierContract, classifier_of
from router.types import Request, Turn

PLUGIN = Path(__file__).resolve().parent / "{plugins}" / "{module}.py"


class Test{klass}(ClassifierContract):
    def make(self):
        return classifier_of(PLUGIN)


def classify(text):
    return classifier_of(PLUGIN).classify_batch([Request("test", turns=(Turn("user", text),))])[0]


def test_it_votes_for_its_adapter():
    assert classify("Something about {word}, please.").values == {{"{adapter}": 1.0}}


def test_it_declines_what_it_does_not_know():
    assert classify("Good morning.") is None
"""


def write_plugin(name: str, adapter: str, plugins: Path, tests: Path) -> tuple[Path, Path]:
    """Write plugins/NAME.py and tests/test_NAME.py; returns both paths."""
    if not NAME.fullmatch(name) or len(name) > 40:
        raise CliError(f"{name!r} is no plugin name: lower-case letters, digits, - and _", MISUSED)
    if plugins.resolve() == tests.resolve():
        raise CliError("the test must not lie in the plugins folder: every file there is loaded", MISUSED)
    module = name.replace("-", "_")
    values = {
        "name": name,
        "module": module,
        "klass": "".join(part.capitalize() for part in module.split("_")),
        "word": module.replace("_", " "),
        "adapter": adapter,
        "plugins": os.path.relpath(plugins.resolve(), tests.resolve()),
    }
    written = (plugins / f"{module}.py", tests / f"test_{module}.py")
    for path in written:
        if path.exists():
            raise CliError(f"{path} exists already; take another name, or remove it first")
    for path, template in zip(written, (PLUGIN, TEST), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.format(**values), encoding="utf-8")
    return written
