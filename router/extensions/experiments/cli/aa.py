"""`lora-router experiments aa`: an A/A self-test through the real server.

Simulated units ask through gRPC and record random outcomes; `self_test` judges them. All arms are the same.
"""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Answer, AsyncClient, Client
    from router.extensions.experiments.client import Experiments, Outcome, Spec
    from router.extensions.experiments.report.model import Report
    from router.extensions.experiments.self_test import AAFinding, Traffic

LABEL, METRIC = "aa_unit", "aa_success"
AT_ONCE, RETRY_SECONDS, TRIES = 8, 0.5, 20
EVERY = 10  # each tenth unit asks twice and records twice
WINDOW, SLACK = 10.0, 20.0  # seconds in which outcomes count, and further ones for them to be written
Route = Annotated[str, typer.Option("--route", metavar="ADAPTER", help="Adapter to test on, or base.")]
Weights = Annotated[
    str, typer.Option("--weights", metavar="90/10", help="Weights of the arms; default: two equal ones.")
]
Units = Annotated[int, typer.Option("--units", metavar="N", help="Simulated units.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What they ask.")]


def aa(
    route: Route,
    weights: Weights = "50/50",
    units: Units = 400,
    prompt: Prompt = "Hello",
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Run an A/A test through the server, with equal arms.

    Makes a temporary experiment on the route, sends simulated units through gRPC, records random outcomes,
    and says whether assignment, logging, sample ratio and error rate are sound. Only requests with the label
    aa_unit take part, so users are not touched. Exit code 1 if unsound.

    \b
    Examples:
      lora-router experiments aa --route medical --units 400
      lora-router experiments aa --route medical --weights 90/10
    """
    from router.cli.command import MISUSED, CliError
    from router.cli.connect import connected
    from router.extensions.experiments.client import Experiments
    from router.extensions.experiments.self_test import findings

    if units < 10:
        raise CliError(f"--units must be 10 or more, not {units}", MISUSED)
    run, seed = f"aa-{secrets.token_hex(4)}", secrets.randbits(31)
    with connected(server, timeout) as client:
        experiments = Experiments(client)
        plan = _equal_arms(client, route.removeprefix("adapters/"), weights, units)
        simulation = Simulation(run, prompt, {} if plan.route == "base" else {"adapter": plan.route}, units)
        with _temporary(experiments, run, plan):
            traffic = asyncio.run(_send_traffic(server, timeout, simulation))
            report = _report_when_logged(experiments, run, traffic)
    _print(findings(traffic, report, seed), json)


def _equal_arms(client: Client, route: str, weights: str, units: int) -> Spec:
    from router.extensions.experiments.cli.create import told
    from router.extensions.experiments.client import ArmSpec, Spec, metric
    from router.extensions.experiments.plan_file import weights_of

    with told():
        shares = weights_of(weights, field="--weights")
    ref = None if route == "base" else client.adapters.get(route).ref
    return Spec(
        hypothesis="A/A self-test: all arms are the same",
        route=route,
        arms=tuple(
            ArmSpec(name, share, ref) for name, share in zip(string.ascii_lowercase, shares, strict=False)
        ),
        control="a",
        primary=metric(METRIC),
        unit="simulated",
        unit_label=LABEL,
        planned_units=max(200, units),
        window=WINDOW,
        equal_arms=True,
    )


@contextmanager
def _temporary(experiments: Experiments, name: str, plan: Spec) -> Iterator[None]:
    """A running experiment that is gone at the end, whatever happened."""
    experiments.create(name, plan)
    try:
        experiments.start(name)
        yield
    finally:
        if experiments.get(name).state == "running":
            experiments.stop(name, reason="the self-test is over")
        experiments.delete(name)


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


def _report_when_logged(experiments: Experiments, name: str, traffic: Traffic) -> Report:
    """The report once every unit that was sent is there and mature, or after a while without them."""
    end = time.monotonic() + WINDOW + SLACK
    while True:
        found = experiments.report(name)
        mature = sum(numbers.matured for numbers in found.numbers)
        if mature >= len(traffic.arms) or time.monotonic() > end:
            return found
        time.sleep(min(1.0, WINDOW / 4))


@dataclass(frozen=True, slots=True)
class Simulation:
    """Who asks what: `options` go with every request."""

    experiment: str
    prompt: str
    options: dict[str, Any]
    units: int

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
        from router.extensions.experiments.client import Outcome

        unit = f"{self.experiment}-{number}"
        first = await self._ask(client, traffic, unit)
        if first is None:
            return
        value = float(Random(unit).random() < 0.5)
        outcome = Outcome(METRIC, value, response_id=first.response_id, key=unit)
        if await _recorded(client, traffic, outcome):
            traffic.recorded.add(unit)
        if number % EVERY == 0:
            await self._ask(client, traffic, unit)
            traffic.repeated[await _recorded(client, traffic, outcome)] += 1

    async def _ask(self, client: AsyncClient, traffic: Traffic, unit: str) -> Answer | None:
        """The answer, if it was given in the experiment."""
        from router.client import ClientError

        try:
            answer = await client.generate(self.prompt, labels={LABEL: unit}, max_tokens=1, **self.options)
        except ClientError as error:
            traffic.errors.append(str(error))
            return None
        if answer.decision.experiment.removeprefix("experiments/") != self.experiment:
            traffic.outside += 1
            return None
        traffic.arms.setdefault(unit, []).append(answer.decision.arm)
        return answer


async def _recorded(client: AsyncClient, traffic: Traffic, outcome: Outcome) -> str:
    """What became of an outcome; empty where it failed. Exposures are written behind the answer, so that it
    may come a little too early."""
    from router.client import ClientError
    from router.extensions.experiments.client import AsyncExperiments

    for attempt in range(TRIES):
        try:
            return str(await AsyncExperiments(client).record_outcome(outcome))
        except ClientError as error:
            if error.code != "NOT_FOUND" or attempt == TRIES - 1:
                traffic.errors.append(str(error))
                return ""
            await asyncio.sleep(RETRY_SECONDS)
    return ""
