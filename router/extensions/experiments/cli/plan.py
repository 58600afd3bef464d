"""`lora-router experiments plan`: how many users and days an experiment takes, computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.errors import InvalidRequest
from router.extensions.experiments.cli.create import number_from_flag, read_plan_file, told

if TYPE_CHECKING:
    from router.extensions.experiments.sizing import SizeAnswer, SizeQuestion

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
    float,
    typer.Option("--outcome-share", metavar="SHARE", help="Units with an outcome, if others are left out."),
]
COLUMNS = ["EFFECT", "UNITS", "DAYS", "HALF BY", "ONE LOOK", "LOOKING COSTS"]
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
    outcome_share: OutcomeShare = 1.0,
    json: flags.Json = False,
) -> None:
    """Estimate users, days and the smallest effect of an experiment.

    With an effect: the units and days by which it is found. With days: the smallest effect that they find.
    With neither: a table for the planned units. Units are of all arms; looking all the time, as reports
    do, costs what the last column says. No server is asked: a report has control's value and the traffic.

    \b
    Examples:
      lora-router experiments plan medical-v2.toml --baseline 0.5 --effect +10%
      lora-router experiments plan --baseline 0.5 --effect 0.05 --split 90/10 --per-day 800
    """
    from router.cli.output import print_json
    from router.extensions.experiments.plan_file import weights_of
    from router.extensions.experiments.sizing import size_of

    with told():
        planned = _question(file)
        question = replace(
            planned,
            weights=weights_of(split) if split else planned.weights,
            units=None if effect or days is not None else planned.units,
            baseline=baseline,
            deviation=deviation,
            effect=_effect(effect, baseline) if effect else None,
            units_per_day=per_day,
            days=days,
            power=power,
            outcome_share=outcome_share,
        )
        answer = size_of(question)
        rows: tuple[SizeAnswer, ...] = (answer,)
        if answer.effect is not None and not effect and days is None:
            rows = _table(question, answer.effect)
    if json:
        print_json({"answer": answer, "table": rows})
    else:
        _print(question, answer, rows)


def _question(file: Path | None) -> SizeQuestion:
    from router.extensions.experiments.model import Kind, MetricSpec
    from router.extensions.experiments.plan_file import plan_of
    from router.extensions.experiments.sizing import SizeQuestion

    if file is None:
        return SizeQuestion(MetricSpec("thumbs_up", Kind.PROPORTION))
    return SizeQuestion.of(plan_of(read_plan_file(file)))


def _effect(text: str, baseline: float | None) -> float:
    value = number_from_flag(text.removesuffix("%"), "--effect")
    if not text.endswith("%"):
        return value
    if baseline is None:
        raise CliError(f"--effect {text}: of what? Give the --baseline, too", MISUSED)
    return value * baseline / 100


def _table(question: SizeQuestion, effect: float) -> tuple[SizeAnswer, ...]:
    """The same for smaller and larger effects; without those that cannot be."""
    from router.extensions.experiments.sizing import size_of

    found = []
    for multiple in MULTIPLES:
        try:
            found.append(size_of(replace(question, units=None, effect=multiple * effect)))
        except InvalidRequest:
            continue
    return tuple(found)


def _print(question: SizeQuestion, answer: SizeAnswer, rows: Sequence[SizeAnswer]) -> None:
    from router.cli.output import print_table
    from router.extensions.experiments.sizing import days_text, effect_text, sentence

    if answer.effect is not None:
        table = [
            (
                *(effect_text(question, row), f"{row.units:,}"),
                "-" if row.days is None else days_text(row.days),
                *(f"{row.half_units:,}", f"{row.fixed_units:,}", f"x{row.factor:.2f}"),
            )
            for row in rows
        ]
        print_table(COLUMNS, table)
        print(f"\n{sentence(question, answer)}")
    for note in answer.notes:
        print(f"note: {note}")
