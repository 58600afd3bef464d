"""The `lora-router` command. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

import os
import sys
import threading
from typing import Annotated

import typer

from router import __version__
from router.cli import (
    adapter_folders,
    adapters,
    audit,
    clients,
    config_show,
    feedback,
    models,
    plugins,
    replicas,
    route,
)
from router.cli.ask import ask
from router.cli.chat import chat
from router.cli.command import FAILED, INTERRUPTED, group, or_help, report
from router.cli.replica import ReplicaCommand, replica
from router.cli.serve import ServeCommand, serve

app = typer.Typer(
    cls=plugins.WithPlugins,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=ServeCommand)(serve)
app.command()(ask)
app.command()(chat)
app.add_typer(
    group("Where requests go: one request, and how well the classifiers here do.", PROMPT=route.route),
    name="route",
)
app.add_typer(
    group(
        "What users think of answers: kept, listed, exported and deleted.",
        RESPONSE_ID=feedback.record,
        list=feedback.list_,
        export=feedback.export,
        delete=feedback.delete,
    ),
    name="feedback",
)
app.add_typer(
    group(
        "What a server has, and adapter folders here.",
        list=adapters.list_,
        show=adapters.show,
        load=adapters.load,
        unload=adapters.unload,
        default=adapters.default,
        add=adapter_folders.add,
        validate=adapter_folders.validate,
        digest=adapter_folders.digest,
    ),
    name="adapters",
)
app.add_typer(
    group(
        "The engines of a server over several: `serve --set replicas=N`.",
        list=replicas.list_,
        drain=replicas.drain,
        ray=replicas.ray,
    ),
    name="replicas",
)
app.add_typer(
    group("Classifier plugins.", list=plugins.list_, doctor=plugins.doctor, new=plugins.new), name="plugins"
)
app.add_typer(group("Base models in the cache.", fetch=models.fetch, list=models.list_), name="models")
app.add_typer(
    group(
        "Who may call a server: the file that `serve --clients` reads.",
        new=clients.new,
        list=clients.list_,
        revoke=clients.revoke,
    ),
    name="clients",
)
app.add_typer(
    group("The file of administrative calls and refusals.", verify=audit.verify),
    name="audit",
    hidden=True,
)
app.add_typer(group("Settings.", show=config_show.show), name="config")


app.command(cls=ReplicaCommand)(replica)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lora-router {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The right LoRA adapter for every request, on one resident base model.

    \b
    Examples:
      lora-router serve
      lora-router ask "Translate to French: high-level client library"
      lora-router COMMAND --help

    Advanced, not in the list: audit.
    """
    or_help(context)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        code = app(args=arguments, prog_name="lora-router", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return report(error)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point."""
    code = run()
    if any(thread.daemon for thread in threading.enumerate()):
        # Such a thread, a classifier's fit for one, may be inside a C++ library: if the interpreter goes
        # first, that library aborts the process. All that had to be written is written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
