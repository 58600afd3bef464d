"""`lora-router experiments create|update`: plans from a TOML file, which explains every field, and flags for
what people type."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.errors import InvalidRequest

if TYPE_CHECKING:
    from router.extensions.experiments.client import Experiment, Experiments


def read_plan_file(path: Path) -> dict[str, Any]:
    """The values of a file. Raises CliError if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of too many digits
        raise CliError(f"{path}: not valid TOML: {error}", MISUSED) from None


@contextmanager
def experiments_at(server: str, timeout: float) -> Iterator[Experiments]:
    """The experiments of a server."""
    from router.cli.connect import connected
    from router.extensions.experiments.client import Experiments

    with connected(server, timeout) as client:
        yield Experiments(client)


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a plan as an error of the command."""
    try:
        yield
    except InvalidRequest as error:
        raise CliError(error.message, MISUSED) from None


def number_from_flag(text: str, flag: str) -> float:
    """The number. Raises CliError for another text."""
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{flag}: {text!r} is not a number", MISUSED) from None


def _arm(text: str) -> tuple[str, str]:
    name, _, adapter = text.partition("=")
    if not (name and adapter):
        raise CliError(f"--arm takes NAME=ADAPTER@VERSION or NAME=base, not {text!r}", MISUSED)
    return name, adapter


def _guardrail(text: str) -> dict[str, Any]:
    """METRIC=MARGIN; 10% is of control's value."""
    from router.extensions.experiments.plan_file import metric_of

    name, equals, margin = text.partition("=")
    if not equals:
        example = "total_time_over_4s=0.02"
        raise CliError(f"--guardrail takes METRIC=MARGIN, such as {example}, not {text!r}", MISUSED)
    relative = margin.endswith("%")
    value = number_from_flag(margin.removesuffix("%"), "--guardrail")
    return metric_of(name) | {"margin": value / 100 if relative else value, "relative": relative}


def _set(pair: str) -> tuple[str, Any]:
    """FIELD=VALUE as TOML; what is not TOML is a text."""
    field, equals, value = pair.partition("=")
    if not equals:
        raise CliError(f"--set takes FIELD=VALUE, not {pair!r}", MISUSED)
    try:
        return field.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return field.strip(), value.strip()


Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment: small letters, digits, hyphens.")]
NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Its name: small letters, digits and hyphens.", show_default=False),
]
File = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Plan as TOML; flags replace what it says.")
]
Changes = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="TOML with the fields to change, or with the whole plan."),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="NAME=ADAPTER@VERSION",
        help="An arm, repeat it; NAME=base has no adapter. The first is control.",
    ),
]
Split = Annotated[
    str,
    typer.Option("--split", metavar="90/10", help="Weights of the arms in their order; equal by default."),
]
Metric = Annotated[
    str,
    typer.Option("--metric", metavar="[KIND:]NAME", help="What decides; a proportion by default."),
]
Guardrails = Annotated[
    list[str] | None,
    typer.Option(
        "--guardrail", metavar="METRIC=MARGIN", help="What must not get worse by more; 10% is of control."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of a plan, in TOML; repeatable."),
]
Start = Annotated[bool, typer.Option("--start", help="Start it at once.")]
NewPhase = Annotated[
    bool,
    typer.Option("--new-phase", help="Change it although that opens a new phase: what was counted ends."),
]
Example = Annotated[bool, typer.Option("--example", help="Print an example of a plan and do nothing else.")]
Etag = Annotated[
    str, typer.Option("--etag", metavar="ETAG", help="Refuse if it changed since this was read.")
]


def create(
    name: NewName = "",
    file: File = None,
    arm: Arms = None,
    split: Split = "",
    metric: Metric = "",
    guardrail: Guardrails = None,
    set_: Sets = None,
    start: Start = False,
    example: Example = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Store the plan of an experiment.

    The plan is fixed before the first unit is seen: what is compared, by which metric, and what would be
    too much harm. Nobody is assigned before the start. `experiments plan` tells how long it will take.
    Requests for the adapter of the first arm that has one take part, unless the plan says another route.

    \b
    Examples:
      lora-router experiments create --example > medical-v2.toml
      lora-router experiments create medical-v2 medical-v2.toml
      lora-router experiments create medical-v2 --arm old=medical@1.0.0 --arm new=medical@1.1.0 \\
        --split 90/10 --metric thumbs_up --guardrail error=0.02 --set window=12h --start
    """
    from router.extensions.experiments.plan_file import example_plan, plan_of, typed

    if example:
        print(example_plan(), end="")
        return
    if not name:
        raise CliError("an experiment needs a NAME; `--example` prints a plan to begin with", MISUSED)
    values = read_plan_file(file) if file else {}
    if guardrail:
        values["guardrails"] = [_guardrail(text) for text in guardrail]
    with told():
        values = typed(values, [_arm(text) for text in arm or []], split, metric) | dict(
            map(_set, set_ or [])
        )
        values.setdefault(
            "hypothesis", f"{metric or 'the metric'} is better with {' or '.join((arm or [])[1:])}"
        )
        plan = plan_of(values)
    with experiments_at(server, timeout) as experiments:
        made = experiments.create(name, plan)
        if start:
            made = experiments.start(name, etag=made.etag)
    show_one(made, json)


def update(
    name: Name,
    file: Changes = None,
    set_: Sets = None,
    new_phase: NewPhase = False,
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Change a stored plan.

    While it runs, this opens a new phase: units are assigned anew and nothing of the old phase counts. That
    needs --new-phase; without it the command says how many units and days would be lost, and changes nothing.
    Raising the enrolment share does not: everybody keeps their arm, and what was counted stays.

    \b
    Examples:
      lora-router experiments update medical-v2 --set enrolment=0.5
      lora-router experiments update medical-v2 medical-v2.toml --new-phase
    """
    from router.extensions.experiments.plan_file import plan_of, values_of

    values = (read_plan_file(file) if file else {}) | dict(map(_set, set_ or []))
    if not values:
        raise CliError("nothing to change: give a FILE or --set FIELD=VALUE", MISUSED)
    with experiments_at(server, timeout) as experiments:
        with told():
            plan = plan_of(values_of(experiments.get(name).spec) | values)
        changes = {field: getattr(plan, field) for field in values}
        made = experiments.update(name, changes, etag=etag, new_phase=new_phase)
    show_one(made, json)


def show_one(experiment: Experiment, json: bool) -> None:
    """One experiment as pairs or JSON."""
    from router.cli.output import print_json, print_pairs
    from router.extensions.experiments.plan_lines import pairs_of

    if json:
        print_json(experiment)
    else:
        print_pairs(pairs_of(experiment))
