"""`lora-router experiments create|update`: plans, from a TOML file, from flags, or from both.

A plan is first the values of a TOML file. The example explains every field.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.experiments.cli.metric_flags import (
    guardrail_from_flag,
    metric_from_flag,
    number_from_flag,
    segment_from_flag,
    with_caps,
    with_missing,
)

if TYPE_CHECKING:
    from router.experiments.model import Spec


def read_plan_file(path: Path) -> dict[str, Any]:
    """The values of a file. Raises CliError if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of too many digits
        raise CliError(f"{path}: not valid TOML: {error}", MISUSED) from None


def plan_from(values: Mapping[str, Any]) -> Spec:
    """A plan from the values of a file. Raises CliError naming every wrong field."""
    from router.errors import InvalidRequest
    from router.experiments.plan_file import plan_of

    try:
        return plan_of(values)
    except InvalidRequest as error:
        raise CliError(error.message, MISUSED) from None


def seconds_from_flag(text: str, flag: str) -> float:
    """A time such as 90s or 12h. Raises CliError for another text."""
    from router.experiments.model import seconds

    try:
        return float(str(seconds(text)))
    except ValueError as error:
        raise CliError(f"{flag}: {error}", MISUSED) from None


def arms_from_flags(texts: Sequence[str], split: str = "") -> list[dict[str, Any]]:
    """NAME=ADAPTER@VERSION[:WEIGHT]. Weights are equal unless said, there or by `split`."""
    arms = [_arm_from_flag(text) for text in texts]
    if split:
        if any(arm["weight"] is not None for arm in arms):
            raise CliError("weights are given twice: take them out of --arm, or leave --split out", MISUSED)
        return with_split(arms, split)
    given = [arm["weight"] for arm in arms if arm["weight"] is not None]
    silent = len(arms) - len(given)
    share = (1 - sum(given)) / silent if silent else 0.0  # what the others leave
    return [arm | {"weight": share if arm["weight"] is None else arm["weight"]} for arm in arms]


def with_split(arms: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    """The arms with the weights of `90/10`, in their order."""
    weights = weights_from_flag(split)
    if len(weights) != len(arms):
        what = f"{len(weights)} weights, and there are {len(arms)} arms"
        raise CliError(f"--split {split} has {what}: one for each, control first", MISUSED)
    return [dict(arm) | {"weight": weight} for arm, weight in zip(arms, weights, strict=True)]


def weights_from_flag(split: str, flag: str = "--split") -> tuple[float, ...]:
    """`90/10` or `0.9/0.1` as shares that sum to 1. Raises CliError unless they add up to 100 or 1."""
    parts = [number_from_flag(part, flag) for part in split.split("/")]
    if len(parts) < 2 or not all(part > 0 and math.isfinite(part) for part in parts):
        raise CliError(f"{flag} takes shares above 0 such as 90/10, control first, not {split!r}", MISUSED)
    total = math.fsum(parts)
    if not any(math.isclose(total, whole, rel_tol=1e-9) for whole in (1.0, 100.0)):
        text = f"the shares add up to {total:.6g} instead of 100 (or 1)"
        raise CliError(f"{flag} {split}: {text}; in these proportions: {_percents(parts)}", MISUSED)
    return tuple(part / total for part in parts)


def _percents(parts: Sequence[float]) -> str:
    """Shares in the proportions of `parts` that add up to exactly 100. The last has the rounding."""
    total = math.fsum(parts)
    tenths = [max(round(1000 * part / total), 1) for part in parts[:-1]]
    return "/".join(f"{tenth / 10:g}" for tenth in (*tenths, 1000 - sum(tenths)))


def _arm_from_flag(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    adapter, _, weight = rest.partition(":")
    if not (equals and name and adapter):
        raise CliError(f"--arm takes NAME=ADAPTER@VERSION[:WEIGHT] or NAME=base, not {text!r}", MISUSED)
    return {"name": name, "adapter": adapter, "weight": number_from_flag(weight, "--arm") if weight else None}


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
    typer.Option(
        "--metric",
        metavar="[KIND:]NAME",
        help="What decides; a proportion by default. `create --example` has all kinds.",
    ),
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
        "--secondary",
        metavar="[KIND:]NAME",
        help="A metric that is reported and decides nothing; repeatable.",
    ),
]
Segments = Annotated[
    list[str] | None,
    typer.Option(
        "--segment", metavar="LABEL[=a,b,c]", help="Report the effect by a label's values, too; repeatable."
    ),
]
Missing = Annotated[
    str, typer.Option("--missing", metavar="zero|excluded", help="What a unit without the metric counts as.")
]
Caps = Annotated[
    list[str] | None,
    typer.Option("--cap", metavar="METRIC=VALUE", help="Count a unit of a mean as at most this; repeatable."),
]
Hypothesis = Annotated[
    str, typer.Option("--hypothesis", metavar="TEXT", help="What it is to show, in words, for the record.")
]
Mode = Annotated[str, typer.Option("--mode", metavar="MODE", help="split, shadow or holdout.")]
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
    missing: str
    hypothesis: str
    sets: list[str] | None

    def values(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fields of a plan as the values of a file: only what is said. `before`: what a cap or a split is
        put into where neither file nor flags have it."""
        made = read_plan_file(self.file) if self.file else {}
        made |= self._flags() | _parsed(self.sets or [])
        whole = (before or {}) | made
        if self.split and not self.arms:
            made["arms"] = with_split(whole.get("arms") or [], self.split)
        made |= with_caps(whole | made, self.caps or [])
        return made | with_missing(whole | made, self.missing)

    def _flags(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if self.arms:
            made["arms"] = arms_from_flags(self.arms, self.split)
            made["control"] = made["arms"][0]["name"]
        if self.route:
            made["route"] = self.route.removeprefix("adapters/")
        if self.metric:
            made["primary"] = metric_from_flag(self.metric)
        for field, texts, read in (
            ("guardrails", self.guardrails, guardrail_from_flag),
            ("secondary", self.secondary, metric_from_flag),
            ("segments", self.segments, segment_from_flag),
        ):
            if texts:
                made[field] = [read(text) for text in texts]
        if self.hypothesis:
            made["hypothesis"] = self.hypothesis
        return made


def _parsed(sets: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as TOML; what is no TOML is a text."""
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
    missing: Missing = "",
    hypothesis: Hypothesis = "",
    mode: Mode = "",
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
        --arm new=medical@1.1.0 --split 90/10 --metric thumbs_up \\
        --guardrail total_time_over_4s=0.02 --secondary mean:messages --segment country=de,fr --start
    """
    from router.cli.connect import connected
    from router.experiments.cli import show_one

    if example:
        from router.experiments.plan_file import example_plan

        print(example_plan(), end="")
        return
    if not name:
        raise CliError("an experiment needs a NAME; `--example` prints a plan to begin with", MISUSED)
    options = PlanOptions(
        file, route, arm, split, metric, guardrail, secondary, segment, cap, missing, hypothesis, set_
    )
    values = options.values() | ({"mode": mode} if mode else {})
    values.setdefault("hypothesis", f"{metric or 'the metric'} is better with {' or '.join((arm or [])[1:])}")
    with connected(server, timeout) as client:
        made = client.experiments.create(name, plan_from(values))
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
    missing: Missing = "",
    hypothesis: Hypothesis = "",
    set_: Sets = None,
    new_phase: NewPhase = False,
    etag: Etag = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Change a plan.

    While it runs, this opens a new phase: units are assigned anew and nothing of the old phase counts. That
    needs --new-phase; without it the command says how many units and days would be lost, and changes nothing.
    Raising the enrolment share, and other secondary metrics, do not: everybody keeps their arm, and what was
    counted stays. Secondary metrics may be changed after the stop, too.

    \b
    Examples:
      lora-router experiments update medical-v2 --set enrolment=0.5
      lora-router experiments update medical-v2 --secondary thumbs_down --secondary mean:messages
      lora-router experiments update medical-v2 --set secondary=[]
      lora-router experiments update medical-v2 medical-v2.toml --new-phase
    """
    from router.cli.connect import connected
    from router.experiments.cli import show_one
    from router.experiments.plan_file import values_of

    options = PlanOptions(
        file, route, arm, split, metric, guardrail, secondary, segment, cap, missing, hypothesis, set_
    )
    if not (options.caps or options.split or options.values()):
        raise CliError("nothing to change: give a FILE, --set FIELD=VALUE or another flag", MISUSED)
    with connected(server, timeout) as client:
        before = values_of(client.experiments.get(name).spec)
        values = options.values(before)
        plan = plan_from(before | values)
        changes = {field: getattr(plan, field) for field in values}
        made = client.experiments.update(name, changes, etag=etag, new_phase=new_phase)
    show_one(made, json)
