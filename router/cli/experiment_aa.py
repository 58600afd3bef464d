"""`lora-router experiments aa`: an A/A self-test through the real server."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.cli.aa_traffic import Simulation, Traffic
    from router.client import Client, Experiment, Spec
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
    from router.cli.aa_checks import findings
    from router.cli.aa_traffic import Simulation
    from router.cli.connect import connected
    from router.cli.errors import MISUSED, CliError
    from router.cli.output import print_json, print_table

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
    from router.cli.aa_traffic import LABEL, METRIC
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
