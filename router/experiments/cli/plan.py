"""`lora-router experiments plan`: how large an effect, how many units and days it takes to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.experiments.model import SizeAnswer, SizeQuestion

Route = Annotated[
    str,
    typer.Option(
        "--route", metavar="ADAPTER", help="Take what is not given from the last experiment here; or base."
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="[KIND:]NAME",
        help="The metric; without a kind, as history has it, or proportion.",
    ),
]
Baseline = Annotated[float | None, typer.Option("--baseline", metavar="VALUE", help="Control's value.")]
Deviation = Annotated[
    float | None,
    typer.Option(
        "--deviation", metavar="VALUE", help="How much units differ: the standard deviation of their values."
    ),
]
Effect = Annotated[
    str,
    typer.Option(
        "--effect", metavar="VALUE|+10%", help="Arm minus control; with % as a share of the baseline."
    ),
]
Split = Annotated[str, typer.Option("--split", metavar="90/10", help="Weights of the arms, control first.")]
Cap = Annotated[
    float | None, typer.Option("--cap", metavar="VALUE", help="Of a mean: a unit counts as at most this.")
]
PerDay = Annotated[float | None, typer.Option("--per-day", metavar="N", help="New units a day on the route.")]
Enrolment = Annotated[
    float, typer.Option("--enrolment", metavar="SHARE", help="Share of them that takes part.")
]
Days = Annotated[float | None, typer.Option("--days", metavar="N", help="Days that it may take.")]
Units = Annotated[
    int | None, typer.Option("--units", metavar="N", help="Units of all arms that it may take.")
]
Alpha = Annotated[float, typer.Option("--alpha", metavar="P", help="Chance of a false verdict.")]
Power = Annotated[
    float, typer.Option("--power", metavar="P", help="Chance that the effect is found by then.")
]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="Less is better of this metric.")]
COLUMNS = ["EFFECT", "UNITS", "DAYS", "HALF BY", "ONE LOOK", "LOOKING COSTS"]
MULTIPLES = (0.5, 1.0, 2.0, 4.0)


def plan(
    route: Route = "",
    metric: Metric = "thumbs_up",
    baseline: Baseline = None,
    deviation: Deviation = None,
    effect: Effect = "",
    split: Split = "50/50",
    cap: Cap = None,
    per_day: PerDay = None,
    enrolment: Enrolment = 1.0,
    days: Days = None,
    units: Units = None,
    alpha: Alpha = 0.05,
    power: Power = 0.8,
    lower_is_better: Lower = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Tell how long an experiment takes.

    With an effect: the units and days by which it is found. With days or units: the smallest effect that
    they find. With neither: a table for 5,000 units. Units are of all arms; looking all the time, as reports
    do, costs what the last column says. What is not given is taken from the last experiment on the route
    that had the metric; where everything is given, no server is asked.

    \b
    Examples:
      lora-router experiments plan --baseline 0.5 --effect 0.05 --split 90/10 --per-day 800
      lora-router experiments plan --route medical --metric thumbs_up --effect +10%
      lora-router experiments plan --metric mean:seconds --cap 60 --baseline 12 --deviation 9 --units 5000
    """
    from router.cli.output import print_json

    asked = replace(
        _question(metric, lower_is_better, split),
        cap=cap,
        route=route.removeprefix("adapters/"),
        baseline=baseline,
        deviation=deviation,
        units_per_day=per_day,
        enrolment=enrolment,
        days=days,
        units=units,
        alpha=alpha,
        power=power,
    )
    answer = _answer(asked, effect, server, timeout)
    rows: tuple[SizeAnswer, ...] = (answer,)
    if answer.effect is not None and not effect and days is None and units is None:
        rows = _table(asked, answer.effect, server, timeout)
    if json:
        print_json({"answer": answer, "table": rows})
    else:
        _print(asked, answer, rows)


def _question(metric: str, lower: bool, split: str) -> SizeQuestion:
    from router.cli.command import MISUSED, CliError
    from router.experiments.cli import plan_file
    from router.experiments.model import Kind, SizeQuestion

    made = plan_file.metric_from_flag(metric)
    name, said = made["name"], made["kind"]
    if said not in plan_file.KINDS:
        kinds = ", ".join(plan_file.KINDS)
        raise CliError(f"--metric {metric}: {said!r} is no kind; there are {kinds}", MISUSED)
    kind = Kind(said) if ":" in metric or name in plan_file.BUILT_IN_METRICS else None
    better = made["higher_is_better"] and not lower
    return SizeQuestion(name, kind, better, weights=plan_file.weights_from_flag(split))


def _answer(asked: SizeQuestion, effect: str, server: str, timeout: float) -> SizeAnswer:
    from router.cli.command import MISUSED, CliError
    from router.experiments.cli.plan_file import number_from_flag

    if not effect:
        return _ask(asked, server, timeout)
    value = number_from_flag(effect.removesuffix("%"), "--effect")
    if effect.endswith("%"):
        baseline = asked.baseline
        if baseline is None:
            baseline = _ask(asked, server, timeout).baseline
        if not math.isfinite(baseline):
            raise CliError(f"--effect {effect}: of what? Give the --baseline, too", MISUSED)
        value *= baseline / 100
    return _ask(replace(asked, effect=value), server, timeout)


def _ask(asked: SizeQuestion, server: str, timeout: float) -> SizeAnswer:
    """Computed here where nothing is left open, else by the server."""
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.errors import InvalidRequest
    from router.experiments.management.sizing import is_whole, size_of

    if not is_whole(asked):
        with connected(server, timeout) as client:
            return client.experiments.plan(asked)
    try:
        return size_of(asked)
    except InvalidRequest as error:
        raise CliError(error.message, MISUSED) from None


def _table(asked: SizeQuestion, effect: float, server: str, timeout: float) -> tuple[SizeAnswer, ...]:
    """The same for smaller and larger effects; without those that cannot be."""
    from router.cli.command import MISUSED, CliError

    found = []
    for multiple in MULTIPLES:
        try:
            found.append(_ask(replace(asked, effect=multiple * effect), server, timeout))
        except CliError as error:
            if error.code != MISUSED:
                raise
    return tuple(found)


def _print(asked: SizeQuestion, answer: SizeAnswer, rows: Sequence[SizeAnswer]) -> None:
    from router.cli.output import print_table

    if answer.effect is not None:
        print_table(COLUMNS, [_row(row) for row in rows])
        print(f"\n{sentence(asked, answer)}")
    for note in answer.notes:
        print(f"note: {note}")


def _row(answer: SizeAnswer) -> tuple[str, ...]:
    days = "-" if answer.days is None else _days(answer.days)
    units = (f"{n:,}" for n in (answer.half_units, answer.fixed_units))
    return (told(answer), f"{answer.units:,}", days, *units, f"x{answer.factor:.2f}")


def _days(days: float) -> str:
    return f"{days:,.0f}" if days >= 10 else f"{days:.1f}"


def told(answer: SizeAnswer) -> str:
    """The effect in the metric's own units: points of a proportion, whose deviation is its value's."""
    effect, rate = answer.effect or 0.0, answer.baseline
    own = 0 <= rate <= 1 and math.isclose(answer.deviation, math.sqrt(rate * (1 - rate)), abs_tol=1e-12)
    return f"{100 * effect:+.3g} points" if own else f"{effect:+.3g}"


def sentence(asked: SizeQuestion, answer: SizeAnswer) -> str:
    """All of it in one."""
    split = "/".join(f"{100 * weight:.4g}" for weight in asked.weights)
    traffic = "" if answer.units_per_day is None else f" at {answer.units_per_day:,.0f} units a day"
    share = "" if asked.enrolment == 1 else f", {asked.enrolment:.3g} of which take part"
    days = "" if answer.days is None else f", about {_days(answer.days)} days"
    found = told(answer) + (" are" if told(answer).endswith("points") else " is")
    return (
        f"{split}{traffic}{share}: {found} found with {100 * asked.power:.4g} % power by"
        f" {answer.units:,} units{days}; one look at the end would take {answer.fixed_units:,}"
        f" (x{answer.factor:.2f})"
    )
