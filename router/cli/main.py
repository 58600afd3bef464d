"""The `lora-router` command. Nothing heavy is imported until a command runs: `--help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from router import __version__
from router.cli import adapters, bench, config, experiments, models, new_adapter, plugins
from router.cli.ask import ask
from router.cli.errors import FAILED, INTERRUPTED, report
from router.cli.experiment_aa import aa
from router.cli.experiment_create import create, update
from router.cli.experiment_record import record
from router.cli.experiment_report import report as report_experiment
from router.cli.experiment_report import watch
from router.cli.learning import evaluate, train
from router.cli.learning_curve import learning_curve
from router.cli.route import route
from router.cli.route_calibrate import calibrate
from router.cli.route_diff import diff
from router.cli.route_evaluate import evaluate as evaluate_routing
from router.cli.route_group import DEFAULT, PromptOrCommand
from router.cli.serve import serve
from router.cli.validate import validate


def _or_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def group(help_text: str, **commands: object) -> typer.Typer:
    """A command with sub-commands, in the order given."""
    made = typer.Typer(rich_markup_mode=None, callback=_or_help, invoke_without_command=True, help=help_text)
    for name, function in commands.items():
        made.command(name)(function)  # type: ignore[type-var]
    return made


app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(ask)
routing = typer.Typer(
    cls=PromptOrCommand,
    rich_markup_mode=None,
    help="Where requests go: one request, and how well the classifiers here do.",
)
routing.command(DEFAULT)(route)
routing.command("calibrate")(calibrate)
routing.command("evaluate")(evaluate_routing)
routing.command("diff")(diff)
app.add_typer(routing, name="route")
app.add_typer(
    group(
        "What a server has, and adapter folders here.",
        list=adapters.list_,
        show=adapters.show,
        load=adapters.load,
        unload=adapters.unload,
        default=adapters.default,
        validate=validate,
        new=new_adapter.new,
        train=train,
        evaluate=evaluate,
        **{"learning-curve": learning_curve},
    ),
    name="adapters",
)
app.add_typer(
    group(
        "A/B tests of adapter versions, of the base and of routers, on live traffic.",
        create=create,
        list=experiments.list_,
        show=experiments.show,
        start=experiments.start,
        update=update,
        report=report_experiment,
        watch=watch,
        record=record,
        stop=experiments.stop,
        promote=experiments.promote,
        rollback=experiments.rollback,
        delete=experiments.delete,
        aa=aa,
    ),
    name="experiments",
)
app.add_typer(
    group("Classifier plugins.", list=plugins.list_, doctor=plugins.doctor, new=plugins.new), name="plugins"
)
app.add_typer(group("Base models in the cache.", fetch=models.fetch, list=models.list_), name="models")
app.add_typer(group("Settings.", show=config.show), name="config")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.bench)


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
    """
    _or_help(context)


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
    sys.exit(run())
