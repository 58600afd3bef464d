"""`lora-router experiments create|update`: plans, from a TOML file, from flags, or from both."""

from __future__ import annotations

from dataclasses import dataclass
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
Split = Annotated[
    str, typer.Option("--split", metavar="90/10", help="Weights of the arms in their order, control first.")
]
Metric = Annotated[
    str,
    typer.Option("--metric", metavar="[KIND:]NAME", help="What decides: proportion (default), mean, ratio."),
]
Guardrails = Annotated[
    list[str] | None,
    typer.Option(
        "--guardrail", metavar="METRIC=MARGIN", help="What must not get worse by more; 10% is of control."
    ),
]
Secondary = Annotated[
    list[str] | None,
    typer.Option(
        "--secondary", metavar="[KIND:]NAME", help="A metric that is told and decides nothing; repeatable."
    ),
]
Segments = Annotated[
    list[str] | None,
    typer.Option(
        "--segment", metavar="LABEL[=a,b,c]", help="Tell the effect by a label's values, too; repeatable."
    ),
]
Caps = Annotated[
    list[str] | None,
    typer.Option("--cap", metavar="METRIC=VALUE", help="Count a unit of a mean as at most this; repeatable."),
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


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a file and flags say of a plan."""

    file: Path | None
    route: str
    arms: list[str] | None
    split: str
    metric: str
    guardrails: list[str] | None
    secondary: list[str] | None
    segments: list[str] | None
    caps: list[str] | None
    hypothesis: str
    sets: list[str] | None

    def values(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fields of a plan as the values of a file: only what is said. `before`: what a cap or a split is
        put into where neither file nor flags have it."""
        from router.experiments.cli import plan_file
        from router.experiments.cli.plan_file import read_plan_file

        made = read_plan_file(self.file) if self.file else {}
        made |= self._flags() | _parsed(self.sets or [])
        whole = (before or {}) | made
        if self.split and not self.arms:
            made["arms"] = plan_file.with_split(whole.get("arms") or [], self.split)
        return made | plan_file.with_caps(whole | made, self.caps or [])

    def _flags(self) -> dict[str, Any]:
        from router.experiments.cli import plan_file

        made: dict[str, Any] = {}
        if self.arms:
            made["arms"] = plan_file.arms_from_flags(self.arms, self.split)
            made["control"] = made["arms"][0]["name"]
        if self.route:
            made["route"] = self.route.removeprefix("adapters/")
        if self.metric:
            made["primary"] = plan_file.metric_from_flag(self.metric)
        for field, texts, read in (
            ("guardrails", self.guardrails, plan_file.guardrail_from_flag),
            ("secondary", self.secondary, plan_file.metric_from_flag),
            ("segments", self.segments, plan_file.segment_from_flag),
        ):
            if texts:
                made[field] = [read(text) for text in texts]
        if self.hypothesis:
            made["hypothesis"] = self.hypothesis
        return made


def _parsed(sets: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as TOML; what is no TOML is a text."""
    import tomllib

    from router.cli.command import MISUSED, CliError

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


def create(
    name: NewName = "",
    file: File = None,
    route: Route = "",
    arm: Arms = None,
    split: Split = "",
    metric: Metric = "",
    guardrail: Guardrails = None,
    secondary: Secondary = None,
    segment: Segments = None,
    cap: Caps = None,
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
    too much harm. Nobody is assigned before the start. `experiments plan` tells how long it will take.

    \b
    Examples:
      lora-router experiments create --example > medical-v2.toml
      lora-router experiments create medical-v2 medical-v2.toml
      lora-router experiments create medical-v2 --route medical --arm old=medical@1.0.0 \\
        --arm new=medical@1.1.0 --split 90/10 --metric thumbs_up --guardrail total_time=10% \\
        --cap total_time=60 --secondary mean:messages --segment country=de,fr --start
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.experiments.cli import show_one
    from router.experiments.cli.plan_file import EXAMPLE, plan_of

    if example:
        print(EXAMPLE, end="")
        return
    if not name:
        raise CliError("an experiment needs a NAME; `--example` prints a plan to begin with", MISUSED)
    options = PlanOptions(
        file, route, arm, split, metric, guardrail, secondary, segment, cap, hypothesis, set_
    )
    values = options.values()
    values.setdefault("hypothesis", f"{metric or 'the metric'} is better with {' or '.join((arm or [])[1:])}")
    with connected(server, timeout) as client:
        made = client.experiments.create(name, plan_of(values))
        if start:
            made = client.experiments.start(name, etag=made.etag)
    show_one(made, json)


def update(
    name: Name,
    file: File = None,
    route: Route = "",
    arm: Arms = None,
    split: Split = "",
    metric: Metric = "",
    guardrail: Guardrails = None,
    secondary: Secondary = None,
    segment: Segments = None,
    cap: Caps = None,
    hypothesis: Hypothesis = "",
    set_: Sets = None,
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Change a plan.

    While it runs, this opens a new phase: units are assigned anew and nothing of the old phase counts.
    Raising the enrolment share, and other secondary metrics, do not: everybody keeps their arm, and what was
    counted stays. Secondary metrics may be changed after the stop, too.

    \b
    Examples:
      lora-router experiments update medical-v2 --set enrolment=0.5
      lora-router experiments update medical-v2 --secondary thumbs_down --secondary mean:messages
      lora-router experiments update medical-v2 --set secondary=[]
      lora-router experiments update medical-v2 medical-v2.toml
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.experiments.cli import show_one
    from router.experiments.cli.plan_file import plan_of, values_of_plan

    options = PlanOptions(
        file, route, arm, split, metric, guardrail, secondary, segment, cap, hypothesis, set_
    )
    if not (options.caps or options.split or options.values()):
        raise CliError("nothing to change: give a FILE, --set FIELD=VALUE or another flag", MISUSED)
    with connected(server, timeout) as client:
        before = values_of_plan(client.experiments.get(name).spec)
        values = options.values(before)
        plan = plan_of(before | values)
        changes = {field: getattr(plan, field) for field in values}
        made = client.experiments.update(name, changes, etag=etag)
    show_one(made, json)
