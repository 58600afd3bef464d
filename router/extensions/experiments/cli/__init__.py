"""`lora-router experiments ...`: what is done to one that is there; other commands have their own modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import group
from router.extensions.experiments.cli.aa import aa as aa_
from router.extensions.experiments.cli.create import (
    Etag,
    Name,
    experiments_at,
    show_one,
    update,
)
from router.extensions.experiments.cli.create import create as create_
from router.extensions.experiments.cli.export import export as export_
from router.extensions.experiments.cli.plan import plan as plan_
from router.extensions.experiments.cli.record import record as record_
from router.extensions.experiments.cli.report import report as report_

if TYPE_CHECKING:
    from router.extensions.experiments.client import Experiment, Experiments, Promotion

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit trail.")]
Arm = Annotated[str, typer.Argument(metavar="ARM", help="The arm; left out, the one that the verdict names.")]
Force = Annotated[
    bool, typer.Option("--force", help="Promote whatever the verdict is; that is recorded. Needs ARM.")
]
COLUMNS = ["NAME", "STATE", "ROUTE", "ARMS", "DECIDES", "VERDICT", "DIFFERENCE", "PROGRESS", "LEFT", "NOTE"]


def list_(server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False) -> None:
    """List the experiments of a server, those that run with their verdict, progress and time left.

    \b
    Example:
      lora-router experiments list
    """
    from router.cli.output import print_json, print_table

    with experiments_at(server, timeout) as experiments:
        found = experiments.list()
        rows = [] if json else [_row(experiments, experiment) for experiment in found]
    if json:
        print_json(found)
    elif rows:
        print_table(COLUMNS, rows)
    else:
        print("no experiments; `lora-router experiments create --example` prints a plan")


def _row(experiments: Experiments, experiment: Experiment) -> tuple[str, ...]:
    """What has ended is not judged again here: its note says how it ended."""
    from router.extensions.experiments import words
    from router.extensions.experiments.next_step import time_left

    spec, judged = experiment.spec, ("", "", "", "")
    if experiment.state == "running":
        report = experiments.report(experiment.name)
        progress = words.progress(report)
        judged = (words.short_verdict(report), words.difference(report), progress, time_left(report))
    promoted = f"{experiment.promoted} promoted" if experiment.promoted else ""
    return (
        experiment.name,
        experiment.state.value,
        spec.route or ("all" if spec.mode == "holdout" else "router"),
        ", ".join(f"{arm.name} {arm.weight:.3g}" for arm in spec.arms),
        spec.primary.name,
        *judged,
        "; ".join(filter(None, [promoted, experiment.stop_reason, *experiment.warnings])),
    )


def show(
    name: Name, server: flags.Server = "", timeout: flags.Timeout = 30.0, json: flags.Json = False
) -> None:
    """Show a plan, its phases and their salts.

    \b
    Example:
      lora-router experiments show medical-v2 --json
    """
    with experiments_at(server, timeout) as experiments:
        found = experiments.get(name)
    show_one(found, json)


def start(
    name: Name,
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Begin to assign units.

    A stopped one starts anew, in a new phase.

    \b
    Example:
      lora-router experiments start medical-v2
    """
    with experiments_at(server, timeout) as experiments:
        found = experiments.start(name, etag=etag)
    show_one(found, json)


def stop(
    name: Name,
    reason: Reason = "",
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Stop an experiment: all users get the default again.

    Outcomes still count until their window closes, so the report may change for that long.

    \b
    Example:
      lora-router experiments stop medical-v2 --reason "release moved"
    """
    with experiments_at(server, timeout) as experiments:
        found = experiments.stop(name, reason=reason, etag=etag)
    show_one(found, json)


def promote(
    name: Name,
    arm: Arm = "",
    force: Force = False,
    reason: Reason = "",
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Make an arm's version the default, and stop.

    Refused unless the verdict is to promote it. --force overrules that and is written into the audit trail.

    \b
    Examples:
      lora-router experiments promote medical-v2
      lora-router experiments promote medical-v2 new --force --reason "ticket 7"
    """
    with experiments_at(server, timeout) as experiments:
        done = experiments.promote(name, arm, force=force, reason=reason, etag=etag)
    _print_promotion(done, json)


def rollback(
    name: Name,
    reason: Reason = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Restore the default version from before the promotion.

    \b
    Example:
      lora-router experiments rollback medical-v2 --reason "complaints since Monday"
    """
    with experiments_at(server, timeout) as experiments:
        done = experiments.roll_back(name, reason=reason)
    _print_promotion(done, json)


def _print_promotion(done: Promotion, json: bool) -> None:
    from router.cli.output import print_json

    if json:
        print_json(done)
        return
    before = f", before it was {done.previous}" if done.previous else ""
    if done.default:
        print(f"{done.default} is the default{before}")
    else:
        print("no version is chosen as the default: the highest one that passes the gate is")
    if done.previous:
        print(f"undo it: lora-router experiments rollback {done.experiment.name}")


def delete(name: Name, etag: Etag = "", server: flags.Server = "", timeout: flags.Timeout = 60.0) -> None:
    """Delete a stopped experiment and its records.

    A running one must be stopped first.

    \b
    Example:
      lora-router experiments delete medical-v2
    """
    with experiments_at(server, timeout) as experiments:
        experiments.delete(name, etag=etag)
    print(f"{name} is forgotten")


app = group(
    "A/B tests of adapter versions, of the base and of routers, on live traffic.",
    plan=plan_,
    create=create_,
    list=list_,
    show=show,
    start=start,
    update=update,
    report=report_,
    record=record_,
    stop=stop,
    promote=promote,
    rollback=rollback,
    delete=delete,
    export=export_,
)
app.command("aa", hidden=True)(aa_)
