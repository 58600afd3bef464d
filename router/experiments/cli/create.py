"""`lora-router experiments create|update`: plans, from a TOML file, from flags, or from both."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.errors import MISUSED, CliError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from router.experiments.model import Spec
    from router.types import AdapterRef

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
SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
# What the server records by itself; less is better of all. Of what is 0 or 1 for an answer, the share of
# units that had it once: a proportion is exact from the first unit on, and shows that nothing happened, too.
SHORT_BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "time_to_first_token": {"kind": "mean", "aggregate": "mean"},
    "total_time": {"kind": "mean", "aggregate": "mean"},
    "completion_tokens": {"kind": "mean", "aggregate": "mean"},
    "length_stop": {"kind": "proportion"},
    "error": {"kind": "proportion"},
    "cancelled": {"kind": "proportion"},
}


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
    from router.experiments.cli import show_one

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
    from router.experiments.cli import show_one

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


EXAMPLE = """\
# A plan: `lora-router experiments create medical-v2 medical-v2.toml`. What is left out has the default shown.
hypothesis = "version 1.1.0 helps more users than 1.0.0"  # what it is to show, in words
route = "medical"        # the adapter whose requests take part; "base" for those that no adapter is for
control = "old"          # the arm that the others are compared with
unit = "user"            # who has the same experience throughout; requests say it in routing.unit
# unit_label = ""        # read the unit from this label of the request instead
window = "1d"            # outcomes count this long after a unit was first served: s, min, h, d
planned_units = 5000     # of all arms together; intervals are tightest there, and valid at any size
# enrolment = 1.0        # share of the units that takes part; may be raised while it runs
# alpha = 0.05           # chance of a false verdict
# margin = 0.0           # how much worse the primary metric may be; 0 asks it to be better
# min_units = 100        # in each arm, before anything is promoted
# min_matured = 0.8      # share of units that had their window, before anything is promoted
# namespace = ""         # experiments of one namespace never share a unit
# slot = [0.0, 1.0]      # this one's part of it
# mode = "split"         # or "shadow" or "bandit"
# shadow_share = 1.0     # shadow: share of requests that shadow arms answer too
# judge = "exact_match"  # shadow: who compares the answers
# floor = 0.05           # bandit: least weight of an arm
# epoch = "1h"           # bandit: time between its weights

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
kind = "proportion"      # 0 or 1 for a unit; "mean": a number; "ratio": a sum over a sum
# higher_is_better = true
# aggregate = "max"      # several outcomes of a unit: max, sum, mean, last
# per = "responses"      # of a ratio: over answers given, "outcomes", or another outcome
# missing = "excluded"   # units without an outcome are left out; "zero": they count as 0
# covariate = false      # adjust by the same outcome of the unit from before (CUPED)

[[guardrails]]           # must not get worse by more than the margin
name = "total_time"      # built in, in seconds
kind = "mean"
aggregate = "mean"
higher_is_better = false
margin = 0.1
relative = true          # the margin is a share of control's value

[[guardrails]]
name = "error"           # built in: 0 or 1 for each answer; here the share of units that had one
kind = "proportion"
higher_is_better = false
margin = 0.02
"""


def plan_values(path: Path) -> dict[str, Any]:
    """The values of a file. Raises CliError if it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: not valid TOML: {error}", MISUSED) from None


def plan_of(values: Mapping[str, Any]) -> Spec:
    """A plan from plain values. Raises CliError naming every wrong field."""
    from pydantic import TypeAdapter, ValidationError

    from router.experiments.model import Spec

    made = {"route": "", **values}
    _known(made, Spec, "")
    made["arms"] = [_arm(arm, f"arms[{i}].") for i, arm in enumerate(_tables(made, "arms"))]
    made["guardrails"] = [
        _metric(metric, f"guardrails[{i}].") for i, metric in enumerate(_tables(made, "guardrails"))
    ]
    if isinstance(made.get("primary"), Mapping):
        made["primary"] = _metric(made["primary"], "primary.")
    made |= {name: seconds(made[name], name) for name in ("window", "epoch") if name in made}
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
    from router.types import RouterVariant

    _known(values, ArmSpec, where)
    if isinstance(values.get("router"), Mapping):
        _known(values["router"], RouterVariant, f"{where}router.")
    made = dict(values)
    if "adapter" in made:
        made["adapter"] = adapter_of(str(made["adapter"]), f"{where}adapter")
    return made


def _metric(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    from router.experiments.model import MetricSpec

    _known(values, MetricSpec, where)
    usual = "max" if values.get("kind") == "proportion" else "sum"
    return {"aggregate": usual, **values}


def _known(values: Mapping[str, Any], kind: type, where: str) -> None:
    names = [field.name for field in fields(kind)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise CliError(f"unknown field {where + key!r}; {hint}", MISUSED)


def adapter_of(text: str, field: str) -> AdapterRef | None:
    """NAME@VERSION or a resource name; `base` is None."""
    from router.client.requests import resource_name
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


def values_of(
    route: str, arms: Sequence[str], metric: str, guardrails: Sequence[str], hypothesis: str
) -> dict[str, Any]:
    """Flags as the values of a file; the first arm is control, weights are equal unless said."""
    made: dict[str, Any] = {}
    if arms:
        parts = [_short_arm(arm) for arm in arms]
        made["arms"] = _weighted(parts)
        made["control"] = parts[0]["name"]
    if route:
        made["route"] = route.removeprefix("adapters/")
    if metric:
        name, _, kind = metric.partition(":")
        made["primary"] = _short_metric(name) | ({"kind": kind} if kind else {})
    if guardrails:
        made["guardrails"] = [_short_guardrail(text) for text in guardrails]
    if hypothesis:
        made["hypothesis"] = hypothesis
    return made


def _short_arm(text: str) -> dict[str, Any]:
    name, equals, rest = text.partition("=")
    adapter, _, weight = rest.partition(":")
    if not (equals and name and adapter):
        raise CliError(f"--arm takes NAME=ADAPTER@VERSION[:WEIGHT] or NAME=base, not {text!r}", MISUSED)
    return {"name": name, "adapter": adapter, "weight": _number(weight, "--arm") if weight else None}


def _weighted(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is left by the arms that say their weight is shared equally by the others."""
    said = [arm["weight"] for arm in arms if arm["weight"] is not None]
    silent = len(arms) - len(said)
    share = (1 - sum(said)) / silent if silent else 0.0
    return [arm | {"weight": share if arm["weight"] is None else arm["weight"]} for arm in arms]


def _short_metric(name: str) -> dict[str, Any]:
    built_in = SHORT_BUILT_IN.get(name)
    if built_in is None:
        return {"name": name, "kind": "proportion"}
    return {"name": name, **built_in, "higher_is_better": False}


def _short_guardrail(text: str) -> dict[str, Any]:
    name, equals, margin = text.partition("=")
    if not equals:
        raise CliError(f"--guardrail takes METRIC=MARGIN, such as total_time=10%, not {text!r}", MISUSED)
    relative = margin.endswith("%")
    number = _number(margin.removesuffix("%"), "--guardrail")
    return _short_metric(name) | {"margin": number / 100 if relative else number, "relative": relative}


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CliError(f"{flag}: {text!r} is not a number", MISUSED) from None
