"""`lora-router experiments ...`: the commands; `create`, `record` and `report` have their own modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import group
from router.extensions.experiments.cli.aa import aa as aa_
from router.extensions.experiments.cli.create import (
    Etag,
    Name,
    experiments_at,
    number_from_flag,
    read_plan_file,
    show_one,
    told,
    update,
)
from router.extensions.experiments.cli.create import create as create_
from router.extensions.experiments.cli.export import export as export_
from router.extensions.experiments.cli.record import record as record_
from router.extensions.experiments.cli.report import report as report_

if TYPE_CHECKING:
    from router.extensions.experiments.client import Experiment, Experiments, Promotion
    from router.extensions.experiments.model import SizeAnswer, SizeQuestion

Plan = Annotated[Path | None, typer.Argument(metavar="FILE", help="Plan as TOML; left out: a proportion.")]
Split = Annotated[
    str,
    typer.Option("--split", metavar="90/10", help="Weights of the arms, control first; default: the plan's."),
]
Baseline = Annotated[float | None, typer.Option("--baseline", metavar="VALUE", help="Control's value.")]
Deviation = Annotated[
    float | None,
    typer.Option("--deviation", metavar="VALUE", help="Of a mean: the standard deviation of units' values."),
]
Effect = Annotated[
    str,
    typer.Option(
        "--effect", metavar="VALUE|+10%", help="Arm minus control; with % as a share of the baseline."
    ),
]
PerDay = Annotated[float | None, typer.Option("--per-day", metavar="N", help="New units a day on the route.")]
Days = Annotated[float | None, typer.Option("--days", metavar="N", help="Days that it may take.")]
Power = Annotated[
    float, typer.Option("--power", metavar="P", help="Chance that the effect is found by then.")
]
OutcomeShare = Annotated[
    float | None,
    typer.Option("--outcome-share", metavar="SHARE", help="Units with an outcome, if others are left out."),
]
SIZE_COLUMNS = ["EFFECT", "UNITS", "DAYS", "HALF BY", "ONE LOOK", "LOOKING COSTS"]
MULTIPLES = (0.5, 1.0, 2.0, 4.0)


def plan(
    file: Plan = None,
    split: Split = "",
    baseline: Baseline = None,
    deviation: Deviation = None,
    effect: Effect = "",
    per_day: PerDay = None,
    days: Days = None,
    power: Power = 0.8,
    outcome_share: OutcomeShare = None,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Estimate users, days and the smallest effect of an experiment.

    With an effect: the units and days by which it is found. With days: the smallest effect that they find.
    With neither: a table for the planned units. Units are of all arms; looking all the time, as reports
    do, costs what the last column says. What is not given is taken from the last experiment on the plan's
    route that had the metric; where everything is given, no server is asked.

    \b
    Examples:
      lora-router experiments plan medical-v2.toml --effect +10%
      lora-router experiments plan --baseline 0.5 --effect 0.05 --split 90/10 --per-day 800
    """
    from router.cli.output import print_json
    from router.extensions.experiments.plan_file import weights_of

    with told():
        planned = _question(file)
        question = replace(
            planned,
            weights=weights_of(split) if split else planned.weights,
            units=None if effect or days is not None else planned.units,
            baseline=baseline,
            deviation=deviation,
            units_per_day=per_day,
            days=days,
            power=power,
            outcome_share=outcome_share,
        )
    answer = _answer(question, effect, server, timeout)
    rows: tuple[SizeAnswer, ...] = (answer,)
    if answer.effect is not None and not effect and days is None:
        rows = _table(question, answer.effect, server, timeout)
    if json:
        print_json({"answer": answer, "table": rows})
    else:
        _print(question, answer, rows)


def _question(file: Path | None) -> SizeQuestion:
    from router.extensions.experiments.model import Kind, SizeQuestion
    from router.extensions.experiments.plan_file import plan_of

    if file is None:
        return SizeQuestion("thumbs_up", Kind.PROPORTION, weights=(0.5, 0.5))
    return SizeQuestion.of(plan_of(read_plan_file(file)))


def _answer(question: SizeQuestion, effect: str, server: str, timeout: float) -> SizeAnswer:
    from router.cli.command import MISUSED, CliError

    if not effect:
        return _ask(question, server, timeout)
    value = number_from_flag(effect.removesuffix("%"), "--effect")
    if effect.endswith("%"):
        baseline = question.baseline
        if baseline is None:
            baseline = _ask(question, server, timeout).baseline
        if not math.isfinite(baseline):
            raise CliError(f"--effect {effect}: of what? Give the --baseline, too", MISUSED)
        value *= baseline / 100
    return _ask(replace(question, effect=value), server, timeout)


def _ask(question: SizeQuestion, server: str, timeout: float) -> SizeAnswer:
    """Computed here where nothing is left open, else by the server."""
    from router.extensions.experiments.sizing import is_whole, size_of

    if not is_whole(question):
        with experiments_at(server, timeout) as experiments:
            return experiments.plan(question)
    with told():
        return size_of(question)


def _table(question: SizeQuestion, effect: float, server: str, timeout: float) -> tuple[SizeAnswer, ...]:
    """The same for smaller and larger effects; without those that cannot be."""
    from router.cli.command import MISUSED, CliError

    found = []
    for multiple in MULTIPLES:
        try:
            found.append(_ask(replace(question, units=None, effect=multiple * effect), server, timeout))
        except CliError as error:
            if error.code != MISUSED:
                raise
    return tuple(found)


def _print(question: SizeQuestion, answer: SizeAnswer, rows: Sequence[SizeAnswer]) -> None:
    from router.cli.output import print_table
    from router.extensions.experiments.sizing import sentence

    if answer.effect is not None:
        print_table(SIZE_COLUMNS, [_size_row(row) for row in rows])
        print(f"\n{sentence(question, answer)}")
    for note in answer.notes:
        print(f"note: {note}")


def _size_row(answer: SizeAnswer) -> tuple[str, ...]:
    from router.extensions.experiments.sizing import days_text, effect_text

    days = "-" if answer.days is None else days_text(answer.days)
    units = (f"{n:,}" for n in (answer.half_units, answer.fixed_units))
    return (effect_text(answer), f"{answer.units:,}", days, *units, f"x{answer.factor:.2f}")


Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit trail.")]
Arm = Annotated[str, typer.Argument(metavar="ARM", help="The arm; left out, the one that the verdict names.")]
Withdrawn = Annotated[str, typer.Argument(metavar="ARM", help="The arm.")]
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


def withdraw(
    name: Name,
    arm: Withdrawn,
    reason: Reason = "",
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Remove one arm from a running experiment.

    Its units get the default. No new phase begins: the other arms keep their units and their verdicts, and
    the report keeps what was counted of the arm.

    \b
    Example:
      lora-router experiments withdraw medical-v2 base --reason "too slow"
    """
    with experiments_at(server, timeout) as experiments:
        found = experiments.withdraw(name, arm, reason=reason, etag=etag)
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
    plan=plan,
    create=create_,
    list=list_,
    show=show,
    start=start,
    update=update,
    report=report_,
    record=record_,
    withdraw=withdraw,
    stop=stop,
    promote=promote,
    rollback=rollback,
    delete=delete,
    export=export_,
)
app.command("aa", hidden=True)(aa_)
