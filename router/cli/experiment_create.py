"""`lora-router experiments create|update`: plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from router.cli import flags

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment: small letters, digits, hyphens.")]
NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Its name: small letters, digits and hyphens.", show_default=False),
]
File = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Plan as TOML; flags replace what it says.")
]
Route = Annotated[
    str, typer.Option("--route", metavar="ADAPTER", help="Adapter whose requests take part, or base.")
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="NAME=ADAPTER@VERSION[:WEIGHT]",
        help="An arm, repeat it; NAME=base has no adapter. The first is control; equal weights by default.",
    ),
]
Metric = Annotated[
    str,
    typer.Option("--metric", metavar="NAME[:KIND]", help="What decides: proportion (default), mean, ratio."),
]
Guardrails = Annotated[
    list[str] | None,
    typer.Option(
        "--guardrail", metavar="METRIC=MARGIN", help="What must not get worse by more; 10% is of control."
    ),
]
Hypothesis = Annotated[
    str, typer.Option("--hypothesis", metavar="TEXT", help="What it is to show, in words, for the record.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of a plan, in TOML; repeatable."),
]
Start = Annotated[bool, typer.Option("--start", help="Start it at once.")]
Example = Annotated[bool, typer.Option("--example", help="Print an example of a plan and do nothing else.")]
Etag = Annotated[
    str, typer.Option("--etag", metavar="ETAG", help="Refuse if it changed since this was read.")
]


def create(
    name: NewName = "",
    file: File = None,
    route: Route = "",
    arm: Arms = None,
    metric: Metric = "",
    guardrail: Guardrails = None,
    hypothesis: Hypothesis = "",
    set_: Sets = None,
    start: Start = False,
    example: Example = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Keep the plan of an experiment.

    The plan is fixed before the first unit is seen: what is compared, by which metric, and what would be
    too much harm. Nobody is assigned before the start.

    \b
    Examples:
      lora-router experiments create --example > medical-v2.toml
      lora-router experiments create medical-v2 medical-v2.toml
      lora-router experiments create medical-v2 --route medical --arm old=medical@1.0.0 \\
        --arm new=medical@1.1.0 --metric thumbs_up --guardrail total_time=10% --start
    """
    from router.cli.connect import connected
    from router.cli.errors import MISUSED, CliError
    from router.cli.experiment_plan import EXAMPLE, plan_of
    from router.cli.experiments import show_one

    if example:
        print(EXAMPLE, end="")
        return
    if not name:
        raise CliError("an experiment needs a NAME; `--example` prints a plan to begin with", MISUSED)
    values = _values(file, route, arm or [], metric, guardrail or [], hypothesis, set_ or [])
    values.setdefault("hypothesis", f"{metric or 'the metric'} is better with {' or '.join((arm or [])[1:])}")
    with connected(server, timeout) as client:
        made = client.experiments.create(name, plan_of(values))
        if start:
            made = client.experiments.start(name, etag=made.etag)
    show_one(made, json)


def _values(
    file: Path | None,
    route: str,
    arms: list[str],
    metric: str,
    guardrails: list[str],
    hypothesis: str,
    sets: list[str],
) -> dict[str, Any]:
    from router.cli.experiment_plan import plan_values
    from router.cli.experiment_short import values_of

    made = plan_values(file) if file else {}
    made |= values_of(route, arms, metric, guardrails, hypothesis)
    made |= _parsed(sets)
    return made


def _parsed(sets: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as TOML; what is no TOML is a text."""
    import tomllib

    from router.cli.errors import MISUSED, CliError

    made: dict[str, Any] = {}
    for pair in sets:
        field, equals, value = pair.partition("=")
        if not equals:
            raise CliError(f"--set takes FIELD=VALUE, not {pair!r}", MISUSED)
        try:
            made[field.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            made[field.strip()] = value.strip()
    return made


def update(
    name: Name,
    file: File = None,
    route: Route = "",
    arm: Arms = None,
    metric: Metric = "",
    guardrail: Guardrails = None,
    hypothesis: Hypothesis = "",
    set_: Sets = None,
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Change a plan.

    While it runs, this opens a new phase: units are assigned anew and nothing of the old phase counts.
    Raising the enrolment share alone does not; everybody keeps their arm.

    \b
    Examples:
      lora-router experiments update medical-v2 --set enrolment=0.5
      lora-router experiments update medical-v2 medical-v2.toml
    """
    from router.cli.connect import connected
    from router.cli.errors import MISUSED, CliError
    from router.cli.experiment_plan import plan_of
    from router.cli.experiments import show_one

    values = _values(file, route, arm or [], metric, guardrail or [], hypothesis, set_ or [])
    if not values:
        raise CliError("nothing to change: give a FILE, --set FIELD=VALUE or another flag", MISUSED)
    with connected(server, timeout) as client:
        plan = plan_of(_plain(client.experiments.get(name).spec) | values)
        changes = {field: getattr(plan, field) for field in values}
        made = client.experiments.update(name, changes, etag=etag)
    show_one(made, json)


def _plain(spec: Any) -> dict[str, Any]:
    """A plan as the values of a file."""
    from dataclasses import asdict

    values = asdict(spec)
    for arm, made in zip(spec.arms, values["arms"], strict=True):
        made["adapter"] = str(arm.adapter or "base")
    values["arms"], values["guardrails"] = list(values["arms"]), list(values["guardrails"])
    return values
