"""`lora-router experiments aa`: an A/A self-test through the real server.

Simulated units ask through gRPC and record random outcomes; `self_test` judges them. Arms are all the same;
their number, weights and metrics may be those of a plan.
"""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Answer, AsyncClient, Client
    from router.extensions.experiments.client import Experiment, MetricSpec, Spec
    from router.extensions.experiments.report.model import Report
    from router.extensions.experiments.self_test import AAFinding, Drawn, Traffic

LABEL = "aa_unit"
AT_ONCE, RETRY_SECONDS, TRIES = 8, 0.5, 20
EVERY = 10  # each tenth unit asks twice and records twice
Route = Annotated[
    str, typer.Option("--route", metavar="ADAPTER", help="Adapter to test on, or base; default: --like's.")
]
Like = Annotated[
    str, typer.Option("--like", metavar="NAME", help="With the arms, weights and metrics of this experiment.")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="90/10", help="Weights of the arms; default: two equal ones.")
]
Units = Annotated[int, typer.Option("--units", metavar="N", help="Simulated units.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What they ask.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens of an answer.")]
Window = Annotated[
    float, typer.Option("--window", metavar="SECONDS", help="Time in which outcomes count in the test.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Stop the experiment but do not delete it.")]
SLACK = 20.0
METRIC = "aa_success"
MOST_SIZED = 20_000  # units that the error rate is simulated of


def aa(
    route: Route = "",
    like: Like = "",
    weights: Weights = "",
    units: Units = 400,
    prompt: Prompt = "Hello",
    max_tokens: MaxTokens = 1,
    window: Window = 10.0,
    keep: Keep = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Run an A/A test through the server, with equal arms.

    Makes a temporary experiment on the route, sends simulated units through gRPC, records random outcomes,
    and says whether assignment, logging, sample ratio and error rate are sound. With --like the arms' number
    and weights, the metrics and their caps are those of a plan, and the error rate is that of its planned
    units at its split: before it starts, you know that its verdicts are as rarely wrong as they say.
    Only requests with the label aa_unit take part, so users are not touched. Exit code 1 if unsound.

    \b
    Examples:
      lora-router experiments aa --route medical --units 400
      lora-router experiments aa --route medical --weights 90/10
      lora-router experiments aa --like medical-v2
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected

    if units < 10:
        raise CliError(f"--units must be 10 or more, not {units}", MISUSED)
    if not (route or like):
        raise CliError("what shall it be tested on? --route ADAPTER, or --like an experiment", MISUSED)
    with connected(server, timeout) as client:
        trial = _equal_arms(client, route.removeprefix("adapters/"), like, weights, units, window)
        pinned = {} if trial.plan.route == "base" else {"adapter": trial.plan.route}
        options = {**pinned, "max_tokens": max_tokens}
        found = _run_and_judge(client, trial, units, prompt, options, keep, server, timeout)
    _print(found, json)


@dataclass(frozen=True, slots=True)
class EqualArms:
    """A plan whose arms are the same, how its outcomes are drawn, and of how many units error rates are."""

    plan: Spec
    drawn: tuple[Drawn, ...]
    sized: int

    def recorded(self, units: int, seed: int) -> dict[str, list[float]]:
        """Metric -> the values that units record, denominators of ratios among them; the server's own not."""
        from router.extensions.experiments.model import DENOMINATORS, outcome_problem

        made: dict[str, list[float]] = {}
        for i, one in enumerate(self.drawn):
            spec, columns = one.spec, one.values(units, seed + i)
            made[spec.name] = columns[0].tolist()
            if spec.kind.rules.has_denominator and spec.per not in DENOMINATORS:
                made[spec.per] = columns[1].tolist()
        return {name: values for name, values in made.items() if not outcome_problem(name)}


def _equal_arms(client: Client, route: str, like: str, weights: str, units: int, window: float) -> EqualArms:
    from dataclasses import replace

    from router.extensions.experiments.client import Experiments
    from router.extensions.experiments.self_test import Drawn

    if not like:
        plan = _plan_of_equal_arms(client, route, weights, units, window)
        return EqualArms(plan, (Drawn.of(plan.primary, 0.5),), units)
    model = Experiments(client).get(like).spec
    _check_like(like, model, route)
    made = _plan_of_equal_arms(client, route or model.route, weights, units, window, model)
    plan = replace(
        made,
        alpha=model.alpha,
        primary=model.primary,
        guardrails=model.guardrails,
        secondary=model.secondary,
    )
    drawn = tuple(_outcomes_like(client, metric, plan.route) for metric in plan.metrics)
    return EqualArms(plan, drawn, max(units, min(model.planned_units, MOST_SIZED)))


def _check_like(name: str, model: Spec, route: str) -> None:
    from router.cli.command import MISUSED, CliError

    if not (model.route or route):
        raise CliError(f"{name} is a holdout and has no route of its own: give --route, too", MISUSED)


def _outcomes_like(client: Client, metric: MetricSpec, route: str) -> Drawn:
    """At the rate, or with the mean and deviation, that the route had, where that is known."""
    from router.client import ClientError
    from router.extensions.experiments.client import Experiments, SizeQuestion
    from router.extensions.experiments.self_test import Drawn

    try:
        known = Experiments(client).plan(SizeQuestion(metric.name, metric.kind, route=route, effect=1e-3))
    except ClientError as error:
        if error.code != "INVALID_ARGUMENT":
            raise
        return Drawn.of(metric)
    return Drawn.of(metric, known.baseline, known.deviation)


def _plan_of_equal_arms(
    client: Client, route: str, weights: str, units: int, window: float, model: Spec | None = None
) -> Spec:
    from router.cli.command import MISUSED, CliError
    from router.extensions.experiments.cli.create import told
    from router.extensions.experiments.client import ArmSpec, Spec, metric
    from router.extensions.experiments.plan_file import weights_of

    with told():
        shares = weights_of(weights, field="--weights") if weights else (0.5, 0.5)
    names = list(string.ascii_lowercase[: len(shares)])
    if model is not None:
        names = [arm.name for arm in model.arms]
        shares = shares if weights else tuple(arm.weight for arm in model.arms)
    if len(names) != len(shares):
        there = f"there are {len(names)} arms" if model is not None else "26 arms are the most"
        raise CliError(f"--weights {weights} has {len(shares)} weights, and {there}", MISUSED)
    ref = None if route == "base" else client.adapters.get(route).ref
    return Spec(
        hypothesis="A/A self-test: all arms are the same",
        route=route,
        arms=tuple(ArmSpec(name, share, ref) for name, share in zip(names, shares, strict=True)),
        control=model.control if model is not None else names[0],
        primary=metric(METRIC),
        unit="simulated",
        unit_label=LABEL,
        planned_units=max(200, units),
        window=window,
        equal_arms=True,
    )


def _run_and_judge(
    client: Client,
    trial: EqualArms,
    units: int,
    prompt: str,
    options: dict[str, object],
    keep: bool,
    server: str,
    timeout: float,
) -> list[AAFinding]:
    from router.extensions.experiments.self_test import findings

    run, seed = f"aa-{secrets.token_hex(4)}", secrets.randbits(31)
    simulation = Simulation(run, prompt, options, units, trial.recorded(units, seed))
    with _temporary(client, run, trial.plan, keep):
        traffic = asyncio.run(_send_traffic(server, timeout, simulation))
        report = _report_when_logged(client, run, traffic, trial.plan.window)
    return findings(traffic, report, trial.drawn, trial.sized, run)


@contextmanager
def _temporary(client: Client, name: str, plan: Spec, keep: bool) -> Iterator[Experiment]:
    """A running experiment that is gone at the end, whatever happened."""
    from router.extensions.experiments.client import Experiments

    Experiments(client).create(name, plan)
    try:
        yield Experiments(client).start(name)
    finally:
        if Experiments(client).get(name).state == "running":
            Experiments(client).stop(name, reason="the self-test is over")
        if not keep:
            Experiments(client).delete(name)


def _print(found: list[AAFinding], json: bool) -> None:
    from router.cli.command import CliError
    from router.cli.output import print_json, print_table

    if json:
        print_json(found)
    else:
        print_table(["PART", "", ""], [(f.name, "sound" if f.sound else "UNSOUND", f.text) for f in found])
    unsound = [finding.name for finding in found if not finding.sound]
    if unsound:
        raise CliError(f"unsound: {', '.join(unsound)}")


async def _send_traffic(server: str, timeout: float, simulation: Simulation) -> Traffic:
    from router.cli.connect import secured_for, target_of
    from router.client import AsyncClient

    target = target_of(server)
    async with AsyncClient(target, timeout=timeout, **secured_for(target)) as client:
        return await simulation.run(client)


def _report_when_logged(client: Client, name: str, traffic: Traffic, window: float) -> Report:
    """The report once every unit that was sent is there and mature, or after a while without them."""
    from router.extensions.experiments.client import Experiments

    end = time.monotonic() + window + SLACK
    while True:
        found = Experiments(client).report(name)
        mature = sum(numbers.matured for numbers in found.numbers)
        if mature >= len(traffic.arms) or time.monotonic() > end:
            return found
        time.sleep(min(1.0, window / 4))


@dataclass(frozen=True, slots=True)
class Simulation:
    """Who asks what: `options` go with every request. `values` are those that unit i records, by metric."""

    experiment: str
    prompt: str
    options: dict[str, Any]
    units: int
    values: Mapping[str, list[float]]

    async def run(self, client: AsyncClient) -> Traffic:
        """All units, some at once."""
        from router.extensions.experiments.self_test import Traffic

        traffic, room = Traffic(), asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                await self._unit(client, traffic, number)

        await asyncio.gather(*(one(number) for number in range(self.units)))
        return traffic

    async def _unit(self, client: AsyncClient, traffic: Traffic, number: int) -> None:
        unit = f"{self.experiment}-{number}"
        first = await self._ask(client, traffic, unit)
        if first is None:
            return
        row_values = {metric: values[number] for metric, values in self.values.items()}
        for metric, value in row_values.items():
            await _record_outcome(client, traffic, traffic.recorded, first.response_id, unit, metric, value)
        if number % EVERY == 0:
            await self._ask(client, traffic, unit)
            for metric, value in row_values.items():
                await _record_outcome(
                    client, traffic, traffic.repeated, first.response_id, unit, metric, value
                )

    async def _ask(self, client: AsyncClient, traffic: Traffic, unit: str) -> Answer | None:
        """The answer, if it was given in the experiment."""
        from router.client import ClientError

        try:
            answer = await client.generate(self.prompt, labels={LABEL: unit}, **self.options)
        except ClientError as error:
            traffic.errors.append(str(error))
            return None
        if answer.decision.experiment.removeprefix("experiments/") != self.experiment:
            traffic.outside += 1
            return None
        traffic.arms.setdefault(unit, []).append(answer.decision.arm)
        return answer


async def _record_outcome(
    client: AsyncClient,
    traffic: Traffic,
    counted: Counter[str],
    response: str,
    unit: str,
    metric: str,
    value: float,
) -> None:
    """One outcome; exposures are written behind the answer, so that it may come a little too early."""
    from router.client import ClientError
    from router.extensions.experiments.client import AsyncExperiments, Outcome

    outcome = Outcome(metric, value, response_id=response, key=f"{unit}-{metric}")
    for attempt in range(TRIES):
        try:
            counted[str(await AsyncExperiments(client).record_outcome(outcome))] += 1
            traffic.values.setdefault(metric, {})[unit] = value
            return
        except ClientError as error:
            if error.code != "NOT_FOUND" or attempt == TRIES - 1:
                traffic.errors.append(str(error))
                return
            await asyncio.sleep(RETRY_SECONDS)
