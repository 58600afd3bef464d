"""Simulated units for the A/A self-test: they ask through gRPC and record outcomes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.client import Answer, AsyncClient

LABEL = "aa_unit"
AT_ONCE, RETRY_SECONDS, TRIES = 8, 0.5, 20
EVERY = 10  # each tenth unit asks twice and records twice


@dataclass(slots=True)
class Traffic:
    """What was sent and what came back. `arms`: unit to its answers' arms; `values`: metric to its units."""

    arms: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
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

    def recorded_in(self, arm: str, metric: str) -> int:
        """Units of an arm that recorded an outcome of a metric."""
        sent = self.values.get(metric, {})
        return sum(unit in sent for unit, found in self.arms.items() if found[0] == arm)


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
        said = {metric: values[number] for metric, values in self.values.items()}
        for metric, value in said.items():
            await _record(client, traffic, traffic.recorded, first.response_id, unit, metric, value)
        if number % EVERY == 0:
            await self._ask(client, traffic, unit)
            for metric, value in said.items():
                await _record(client, traffic, traffic.repeated, first.response_id, unit, metric, value)

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
    client: AsyncClient,
    traffic: Traffic,
    counted: Counter[str],
    response: str,
    unit: str,
    metric: str,
    value: float,
) -> None:
    """One outcome; exposures are written behind the answer, so that it may come a little too early."""
    from router.client import ClientError, Outcome

    outcome = Outcome(metric, value, response_id=response, key=f"{unit}-{metric}")
    for attempt in range(TRIES):
        try:
            counted[str(await client.experiments.record_outcome(outcome))] += 1
            traffic.values.setdefault(metric, {})[unit] = value
            return
        except ClientError as error:
            if error.code != "NOT_FOUND" or attempt == TRIES - 1:
                traffic.errors.append(str(error))
                return
            await asyncio.sleep(RETRY_SECONDS)
