"""`lora-router experiments create|update`: plans, from a TOML file, from flags, or from both.

A plan is first the values of a TOML file. The example explains every field.
"""

from __future__ import annotations

import difflib
import math
import re
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
    made_of_times,
    metric_from_flag,
    number_from_flag,
    segment_from_flag,
    with_caps,
    with_missing,
)

if TYPE_CHECKING:
    from pydantic import ValidationError

    from router.experiments.model import Spec
    from router.types import AdapterRef

SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
TIMES = ("window", "grace")
_EXAMPLE = """\
# A plan: `lora-router experiments create medical-v2 medical-v2.toml`. What is left out has the default shown.
# How many units it takes: `lora-router experiments plan`.
hypothesis = "version 1.1.0 helps more users than 1.0.0"  # what it is to show, in words
route = "medical"        # the adapter whose requests take part; "base" for those that no adapter is for
control = "old"          # the arm that the others are compared with
unit = "user"            # who has the same experience throughout; requests say it in routing.unit
# unit_label = ""        # read the unit from this label of the request instead
window = "1d"            # outcomes count this long after a unit was first served: s, min, h, d
# grace = "0s"           # they may arrive this much later, by a batch job: then a unit is mature
planned_units = 5000     # of all arms together: `experiments plan` tells how many an effect takes
# enrolment = 1.0        # share of the units that takes part; may be raised while it runs
# alpha = 0.05           # chance of a false verdict
# margin = 0.0           # how much worse the primary metric may be; 0 asks it to be better
# min_units = 100        # in each arm, before anything is promoted
# min_matured = 0.8      # share of units that had their window, before anything is promoted
# namespace = ""         # experiments of one namespace never share a unit
# slot = [0.0, 1.0]      # this one's part of it
# mode = "split"         # or "shadow", or "holdout" (no route)
# equal_arms = false     # true: arms may be the same version, to test the pipeline (A/A)
# shadow_share = 1.0     # shadow: share of requests that shadow arms answer too

[[arms]]
name = "old"
weight = 0.5
adapter = "medical@1.0.0"  # left out: the base, without an adapter

[[arms]]
name = "new"
weight = 0.5
adapter = "medical@1.1.0"

[primary]                # the metric that decides
name = "thumbs_up"       # an outcome that you record, or a built-in one
kind = "proportion"      # KINDS
# higher_is_better = true
# aggregate = "max"      # several outcomes of a unit: max, sum, mean, last
# per = "responses"      # of a ratio: over answers given, "outcomes", or another outcome
missing = "zero"         # units without an outcome count as 0; "excluded": they are left out
# covariate = false      # adjust by the same outcome of the unit from before (CUPED)

[[guardrails]]           # must not get worse by more than the margin
name = "total_time_over_4s"  # built in: the share of units with an answer slower than 4 s; the limit is yours
                         # (800ms, 2min), and time_to_first_token_over_1s is the like
margin = 0.02            # two units in a hundred more
# relative = false       # true: the margin is a share of control's value
# improve = false        # true, without a margin: must be better, such as serving_cost
# window = "1d"          # how long its outcomes count; left out: the plan's window, which is the longest

[[guardrails]]
name = "error"           # built in: 0 or 1 for each answer; here the share of units that had one
kind = "proportion"
higher_is_better = false
margin = 0.02

[[secondary]]            # reported too, decides nothing; may be changed at any time, without a new phase
name = "messages"
kind = "mean"
cap = 100.0              # of a mean: more counts as this; without it, no interval before 750 units an arm
# least = 0.0            # with a cap: less counts as this

[[segments]]             # the effect by the values of a label of the request; at most 3 labels
label = "country"
values = ["de", "fr"]    # at most 12, others are "(other)"; left out: the first 12 that come
"""


def example_plan() -> str:
    """A plan that explains every field."""
    from router.experiments.model import Kind

    first, *others = Kind
    explained = "; ".join((first.rules.words, *(f'"{kind}": {kind.rules.words}' for kind in others)))
    return _EXAMPLE.replace("KINDS", explained)


def read_plan_file(path: Path) -> dict[str, Any]:
    """The values of a file. Raises CliError if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of too many digits
        raise CliError(f"{path}: not valid TOML: {error}", MISUSED) from None


def values_of_plan(spec: Spec) -> dict[str, Any]:
    """A plan as the values of a file."""
    from dataclasses import asdict

    values = asdict(spec)
    for arm, made in zip(spec.arms, values["arms"], strict=True):
        made["adapter"] = str(arm.adapter or "base")
    return values | {name: list(values[name]) for name in ("arms", "guardrails", "secondary", "segments")}


def plan_of(values: Mapping[str, Any]) -> Spec:
    """A plan from plain values. Raises CliError naming every wrong field."""
    from pydantic import TypeAdapter, ValidationError

    from router.experiments.model import SegmentSpec, Spec

    made = {"route": "", **values}
    _check_names(made, Spec, "")
    made["arms"] = [_arm(arm, f"arms[{i}].") for i, arm in enumerate(_tables(made, "arms"))]
    for name in ("guardrails", "secondary"):
        made[name] = [_metric(metric, f"{name}[{i}].") for i, metric in enumerate(_tables(made, name))]
    for i, segment in enumerate(_tables(made, "segments")):
        _check_names(segment, SegmentSpec, f"segments[{i}].")
    if isinstance(made.get("primary"), Mapping):
        made["primary"] = _metric(made["primary"], "primary.")
    made |= {name: seconds(made[name], name) for name in TIMES if made.get(name) is not None}
    try:
        return TypeAdapter(Spec).validate_python(made)
    except ValidationError as error:
        raise CliError(_problems(error), MISUSED) from None


def _tables(values: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise CliError(f"{name}: must be tables, as [[{name}]]", MISUSED)
    return found


def _arm(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    from router.experiments.model import ArmSpec

    _check_names(values, ArmSpec, where)
    made = dict(values)
    if "adapter" in made:
        made["adapter"] = adapter_from_text(str(made["adapter"]), f"{where}adapter")
    return made


def _metric(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    from router.experiments.model import Kind, MetricSpec

    _check_names(values, MetricSpec, where)
    values = {**made_of_times(str(values.get("name"))), **values}
    usual = next((kind.rules.usual for kind in Kind if kind == values.get("kind")), Kind.MEAN.rules.usual)
    times = {"window": seconds(values["window"], f"{where}window")} if "window" in values else {}
    return {"aggregate": usual.value, "missing": "unsaid", **values, **times}


def _check_names(values: Mapping[str, Any], kind: type, where: str) -> None:
    from dataclasses import fields

    names = [field.name for field in fields(kind)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise CliError(f"unknown field {where + key!r}; {hint}", MISUSED)


def adapter_from_text(text: str, field: str) -> AdapterRef | None:
    """NAME@VERSION or a resource name; `base` is None."""
    from router.client.messages import resource_name
    from router.errors import InvalidRequest
    from router.names import parse_version

    if text == "base":
        return None
    try:
        return parse_version(resource_name(text), field)
    except InvalidRequest:
        raise CliError(f"{field}: must be NAME@VERSION or base, not {text!r}", MISUSED) from None


def seconds(value: object, field: str) -> float:
    """A time as a number of seconds, or as 90s, 30min, 12h, 1d."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", str(value).strip())
    if match is None or match[2] not in SECONDS or isinstance(value, bool):
        raise CliError(f"{field}: must be a time such as 90s, 30min, 12h or 1d, not {value!r}", MISUSED)
    return float(match[1]) * SECONDS[match[2]]


def _problems(error: ValidationError) -> str:
    def place(location: tuple[int | str, ...]) -> str:
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")

    return "; ".join(f"{place(e['loc'])}: {e['msg'].lower()}" for e in error.errors())


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

    options = PlanOptions(
        file, route, arm, split, metric, guardrail, secondary, segment, cap, missing, hypothesis, set_
    )
    if not (options.caps or options.split or options.values()):
        raise CliError("nothing to change: give a FILE, --set FIELD=VALUE or another flag", MISUSED)
    with connected(server, timeout) as client:
        before = values_of_plan(client.experiments.get(name).spec)
        values = options.values(before)
        plan = plan_of(before | values)
        changes = {field: getattr(plan, field) for field in values}
        made = client.experiments.update(name, changes, etag=etag, new_phase=new_phase)
    show_one(made, json)
