"""Simulated units of an A/A self-test: they ask through gRPC and record random outcomes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.client import Answer, AsyncClient

LABEL, METRIC = "aa_unit", "aa_success"
AT_ONCE, RETRY_SECONDS, TRIES = 8, 0.5, 20
EVERY = 10  # each tenth unit asks twice and records twice


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
