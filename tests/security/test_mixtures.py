"""What a client could do with mixtures: learn of hidden adapters, fill memory, be counted where it is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.registry.registry import Registry, RegistryOptions
from tests.fakes import FakeRouter
from tests.registry.life import StubEngine, drop
from tests.security.worlds import world
from tests.server.helpers import Connect, Start, ask, details, failure

pytestmark = pytest.mark.slow


def mixed(**weights: float) -> dict[str, Any]:
    parts = [{"adapter": f"adapters/{name}", "weight": weight} for name, weight in weights.items()]
    return {"mixture": parts}


async def test_a_hidden_part_is_not_found_like_one_that_is_not_there(
    tmp_path: Path, start_server: Start, connect: Connect
) -> None:
    """Also where the mixture could not be served for other reasons: nothing else of it is looked at."""
    async with world(tmp_path, start_server, connect) as at:
        told: list[tuple[str, str | None, str]] = []
        for name in ("legal", "ghost"):
            for weights in (
                {"medical": 0.5, name: 0.5},
                {name: 0.5, "medical": 0.5},
                {name: 0.5, "nix": 1.0},
            ):
                call = at.inference.Generate(ask("hi", routing=mixed(**weights)), metadata=at.clients.mine)
                error = await failure(call)
                reason = details(error)["ErrorInfo"].reason
                told.append((error.code().name, (error.details() or "").replace(name, "NAME"), reason))
        assert told[:3] == told[3:]
        assert {code for code, _, _ in told} == {"NOT_FOUND"}
        assert at.registry.leases() == 0


async def test_a_mixture_takes_part_in_no_experiment(
    tmp_path: Path, start_server: Start, connect: Connect
) -> None:
    """An experiment runs on medical: a mixture of it is no answer of an arm, and no exposure."""
    async with world(tmp_path, start_server, connect) as at:
        asked: dict[str, Any] = {"routing": {**mixed(medical=0.5), "unit": "anna"}}
        mixture = await at.inference.Generate(ask("hi", **asked), metadata=at.clients.mine)
        assert (mixture.decision.experiment, mixture.decision.arm) == ("", "")
        alone: dict[str, Any] = {"routing": {**mixed(medical=1.0), "unit": "anna"}}
        assert not (await at.inference.Generate(ask("hi", **alone), metadata=at.clients.mine)).decision.arm
        await at.live.recorder.flush()
        assert not at.live.counts.exposures
        named = {"routing": {"adapter": "adapters/medical", "unit": "anna"}}
        assert (await at.inference.Generate(ask("hi", **named), metadata=at.clients.mine)).decision.arm
        await at.live.recorder.flush()
        assert sum(at.live.counts.exposures.values()) == 1


async def test_a_client_that_asks_for_ever_new_weights_fills_no_memory(tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    root.mkdir()
    drop(root, "a")
    engine, options = StubEngine(), RegistryOptions(state_dir=tmp_path, gate=False, max_mixtures=4)
    registry = Registry(engine, [root], options)
    await registry.start()
    await registry.settled(10.0)
    router, largest = FakeRouter(registry), 0
    for step in range(500):
        request = SimpleNamespace(
            routing=SimpleNamespace(adapter="", mixture=(("adapters/a", step / 1000 - 0.25),)),
            visible=("a",),
        )
        decision = await router.route(request)  # type: ignore[arg-type]
        async with registry.lease_mixture(decision.mixture):
            largest = max(largest, len(engine.held))
    assert largest <= 1 + 4 + 1  # one may be on its way out
    await registry.close()
