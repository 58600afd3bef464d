"""`lora-router experiments aa`: an A/A self-test through the real server.

Simulated units ask through gRPC and record random outcomes; `router.experiments.self_test` judges what came
of it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Answer, AsyncClient, Client, Experiment, Spec
    from router.experiments.report.model import Report

Route = Annotated[str, typer.Option("--route", metavar="ADAPTER", help="Adapter to test on, or base.")]
Units = Annotated[int, typer.Option("--units", metavar="N", help="Simulated units.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What they ask.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens of an answer.")]
Window = Annotated[
    float, typer.Option("--window", metavar="SECONDS", help="Time in which outcomes count in the test.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Stop the experiment but do not delete it.")]
SLACK = 20.0
LABEL, METRIC = "aa_unit", "aa_success"
AT_ONCE, RETRY_SECONDS, TRIES = 8, 0.5, 20
EVERY = 10  # each tenth unit asks twice and records twice


def aa(
    route: Route,
    units: Units = 400,
    prompt: Prompt = "Hello",
    max_tokens: MaxTokens = 1,
    window: Window = 10.0,
    keep: Keep = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Test the pipeline with two equal arms.

    Makes a temporary experiment on the route whose arms are the same, sends simulated units through gRPC,
    records random outcomes, and says whether assignment, logging, sample ratio and error rate are sound.
    Only requests with the label aa_unit take part, so users are not touched. Exit code 1 if unsound.

    \b
    Example:
      lora-router experiments aa --route medical --units 400
    """
    from router.cli.connect import connected
    from router.cli.errors import MISUSED, CliError
    from router.cli.output import print_json, print_table
    from router.experiments.self_test import findings

    if units < 10:
        raise CliError(f"--units must be 10 or more, not {units}", MISUSED)
    run = f"aa-{secrets.token_hex(4)}"
    pinned = {} if route == "base" else {"adapter": route}
    simulation = Simulation(run, prompt, {**pinned, "max_tokens": max_tokens}, units, secrets.randbits(32))
    with connected(server, timeout) as client:
        plan = _plan(client, route, units, window)
        with _temporary(client, run, plan, keep):
            traffic = asyncio.run(_send(server, timeout, simulation))
            found = findings(traffic, _logged(client, run, traffic, window), run)
    if json:
        print_json(found)
    else:
        print_table(["PART", "", ""], [(f.name, "sound" if f.sound else "UNSOUND", f.text) for f in found])
    unsound = [finding.name for finding in found if not finding.sound]
    if unsound:
        raise CliError(f"unsound: {', '.join(unsound)}")


def _plan(client: Client, route: str, units: int, window: float) -> Spec:
    from router.client import ArmSpec, Spec, metric

    name = route.removeprefix("adapters/")
    ref = None if name == "base" else client.adapters.get(name).ref
    return Spec(
        hypothesis="A/A self-test: both arms are the same",
        route=name,
        arms=(ArmSpec("a", 0.5, ref), ArmSpec("b", 0.5, ref)),
        control="a",
        primary=metric(METRIC),
        unit="simulated",
        unit_label=LABEL,
        planned_units=max(200, units),
        window=window,
    )


@contextmanager
def _temporary(client: Client, name: str, plan: Spec, keep: bool) -> Iterator[Experiment]:
    """A running experiment that is gone at the end, whatever happened."""
    client.experiments.create(name, plan)
    try:
        yield client.experiments.start(name)
    finally:
        if client.experiments.get(name).state == "running":
            client.experiments.stop(name, reason="the self-test is over")
        if not keep:
            client.experiments.delete(name)


async def _send(server: str, timeout: float, simulation: Simulation) -> Traffic:
    from router.cli.connect import target_of
    from router.client import AsyncClient

    async with AsyncClient(target_of(server), timeout=timeout) as client:
        return await simulation.run(client)


def _logged(client: Client, name: str, traffic: Traffic, window: float) -> Report:
    """The report once every unit that was sent is there and mature, or after a while without them."""
    end = time.monotonic() + window + SLACK
    while True:
        found = client.experiments.report(name)
        mature = sum(numbers.matured for numbers in found.numbers)
        if mature >= len(traffic.arms) or time.monotonic() > end:
            return found
        time.sleep(min(1.0, window / 4))


@dataclass(slots=True)
class Traffic:
    """What was sent and what came back. `arms`: unit to the arms of its answers."""

    arms: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    recorded: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    errors: list[str] = field(default_factory=list)

    def units_of(self, arm: str) -> int:
        """Units whose first answer was the arm's."""
        return sum(found[0] == arm for found in self.arms.values() if found)

    def answers_of(self, arm: str) -> int:
        """Answers of an arm."""
        return sum(found.count(arm) for found in self.arms.values())

    def recorded_in(self, arm: str) -> int:
        """Units of an arm that recorded an outcome."""
        return sum(unit in self.values for unit, found in self.arms.items() if found[0] == arm)


@dataclass(frozen=True, slots=True)
class Simulation:
    """Who asks what: `options` go with every request."""

    experiment: str
    prompt: str
    options: dict[str, Any]
    units: int
    seed: int

    async def run(self, client: AsyncClient) -> Traffic:
        """All units, some at once."""
        traffic, room = Traffic(), asyncio.Semaphore(AT_ONCE)
        dice = random.Random(self.seed)
        values = [float(dice.random() < 0.5) for _ in range(self.units)]

        async def one(number: int) -> None:
            async with room:
                await self._unit(client, traffic, number, values[number])

        await asyncio.gather(*(one(number) for number in range(self.units)))
        return traffic

    async def _unit(self, client: AsyncClient, traffic: Traffic, number: int, value: float) -> None:
        unit = f"{self.experiment}-{number}"
        first = await self._ask(client, traffic, unit)
        if first is None:
            return
        await _record(client, traffic, traffic.recorded, first.response_id, unit, value)
        if number % EVERY == 0:
            await self._ask(client, traffic, unit)
            await _record(client, traffic, traffic.repeated, first.response_id, unit, value)

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


async def _record(
    client: AsyncClient, traffic: Traffic, counted: Counter[str], response: str, unit: str, value: float
) -> None:
    """One outcome; exposures are written behind the answer, so that it may come a little too early."""
    from router.client import ClientError, Outcome

    outcome = Outcome(METRIC, value, response_id=response, key=f"{unit}-{METRIC}")
    for attempt in range(TRIES):
        try:
            counted[str(await client.experiments.record_outcome(outcome))] += 1
            traffic.values[unit] = value
            return
        except ClientError as error:
            if error.code != "NOT_FOUND" or attempt == TRIES - 1:
                traffic.errors.append(str(error))
                return
            await asyncio.sleep(RETRY_SECONDS)
