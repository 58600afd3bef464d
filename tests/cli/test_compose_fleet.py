"""A server over replicas: registry, plugins, routing and server are the real thing and see one engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from router.cli.compose import Composition
from router.cli.fleet import OF_ENGINES, membership_of, of_all_replicas, replica_settings
from router.cli.settings import load_settings
from router.cli.summary import print_summary
from router.client import AsyncClient
from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.replicas import ray
from router.replicas.children import ChildLink
from router.replicas.engine import FleetEngine
from router.replicas.link import Link
from router.replicas.membership import FixedMembership, FoundMembership
from tests.cli.test_compose import MANIFEST, READER
from tests.cli.tiny import MODULES, write_adapter
from tests.replicas.local import LocalLink

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def running(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimpleNamespace]:
    """A composition over two fake replicas that is serving, its links and a client."""
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    write_adapter(own_folder / "adapters" / "medical", manifest=MANIFEST)
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "reader.py").write_text(READER)

    def make() -> FakeEngine:
        engine = FakeEngine(step_seconds=0.001)
        engine._info = dataclasses.replace(engine._info, sites=MODULES)
        return engine

    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        adapters_dir=(Path("adapters"),),
        plugins_dir=(Path("plugins"),),
        drain_seconds=2,
        lame_duck_seconds=0.05,
        gate="off",
        replicas="2",
    )
    links = [LocalLink(name, make) for name in "01"]
    engine = FleetEngine(FixedMembership(links), FakeEngine, max_running=4, max_queue=8)
    composition, ready = Composition(settings, engine), asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    async with AsyncClient(composition.app.address, timeout=10) as client:
        yield SimpleNamespace(composition=composition, links=links, engine=engine, client=client)
    composition.app.request_stop()
    await task


@pytest.mark.slow
async def test_all_see_one_engine_and_a_killed_replica_costs_nothing(
    running: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    client = running.client
    answer = await client.generate("one", adapter="medical", max_tokens=8)
    assert str(answer.decision.adapter) == "medical@1.2.0"
    (home,) = [link for link in running.links if link.host._engine.status().host_adapters]
    assert answer.text == f"[{answer.decision.digest[:8]}] one"
    asked = [
        asyncio.create_task(client.generate("one two", adapter="medical", max_tokens=8)) for _ in range(8)
    ]
    await asyncio.to_thread(home.kill)
    texts = {(await task).text for task in asked}
    assert texts == {f"[{answer.decision.digest[:8]}] one two"}
    shaped = await client.generate("one", choices=["larger", "smaller"], max_tokens=8)
    assert shaped.text in ("larger", "smaller")
    print_summary(running.composition.app, running.composition.plugins.status())
    assert re.search(r"replicas +2 on this machine", capsys.readouterr().out)


@pytest.mark.slow
async def test_a_classifier_reads_with_the_replicas(running: SimpleNamespace) -> None:
    for _ in range(200):
        if (await running.client.route("which chapter has gout", explain=True)).classifier == "reader":
            return
        await asyncio.sleep(0.05)
    pytest.fail("the classifier that reads the base was not heard within 10 s")


def test_places_are_those_of_all_replicas() -> None:
    served = of_all_replicas(Settings(replicas="3", max_running=8, max_queue=10))
    assert (served.max_running, served.max_queue, served.host_memory_mb) == (24, 30, 3 * 2048)
    assert of_all_replicas(Settings()) == Settings()


def test_how_many_replicas_there_are(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(replicas=3).replica_bounds == (3, 3)
    monkeypatch.setenv("LORA_ROUTER_REPLICAS", "2")
    assert Settings().replica_bounds == (2, 2)
    monkeypatch.delenv("LORA_ROUTER_REPLICAS")
    (own_folder / "lora-router.toml").write_text("replicas = 4\n")
    assert load_settings().replica_bounds == (4, 4)


@pytest.mark.slow
def test_a_replica_gets_what_its_engine_goes_by_and_no_secret() -> None:
    source = (ROOT / "router" / "engine" / "torch_engine.py").read_text()
    assert set(re.findall(r"settings\.([a-z_]+)", source)) - {"model_copy"} <= OF_ENGINES
    assert set(Settings.model_fields) >= OF_ENGINES
    settings = Settings(replicas="2", slots=7, replica_secret=SecretStr("hush"))
    own = replica_settings(settings)
    assert "hush" not in json.dumps(own)
    assert (own["slots"], "replicas" in own) == (7, False)
    assert own["threads"] >= 1
    assert replica_settings(Settings(replicas="2", max_step_tokens=64))["max_step_tokens"] == 64
    assert replica_settings(Settings(replicas="2", threads=3))["threads"] == 3
    assert replica_settings(Settings(), alone=True)["threads"] == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": -1}, "greater than or equal to 0"),
        ({"replicas": 1025}, "less than or equal to 1024"),
        ({"replicas": "many"}, "valid integer"),
        ({"replicas": "2", "device": "cuda:1"}, "say cuda"),
        ({"replicas": "2", "replica_addresses": "h:1"}, "give one"),
        ({"replica_tls_cert": "c.pem"}, "go together"),
    ],
)
def test_settings_that_make_no_fleet(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**values)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_an_address_where_no_ray_is_is_told_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=rf"no Ray can be reached at {address} .*name the head's address"):
        ray.connect(address)


@pytest.mark.parametrize(
    ("installed", "said"),
    [(False, r"pip install -e '\.\[ray\]' in the checkout"), (True, "LORA_ROUTER_REPLICA")],
)
def test_replicas_on_ray_need_ray_and_protection(
    own_folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, installed: bool, said: str
) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: installed or None)
    reached = ["10.0.0.5:6379"] if installed else ["127.0.0.1:6379"]
    done = cli("replicas", "ray", *reached)
    assert done.code == 2
    assert re.search(said, done.err)


@pytest.mark.slow
def test_nothing_of_replicas_is_imported_before_it_is_needed() -> None:
    code = """
import sys
sys.modules["ray"] = None
import router.cli.compose
print(*(name for name in sys.modules if name.startswith("router.replicas")))
import router.replicas.ray
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


async def test_who_starts_the_replicas() -> None:
    membership = membership_of(Settings(replicas=4))
    assert await membership.names() == ("0", "1", "2", "3")
    assert type(membership.link("3")) is ChildLink
    membership = membership_of(Settings(replica_addresses="a:1, dns:///b:2", replica_tls_name="r"))
    assert isinstance(membership, FoundMembership)
    assert type(membership.link("a:1")) is Link
    assert Settings(replica_addresses="a:1,b:2").replica_bounds == (2, 2)
    for wrong in ("a", "a:b", "dns:///a"):
        with pytest.raises(ConfigError, match="HOST:PORT or dns:///HOST:PORT"):
            membership_of(Settings(replica_addresses=wrong))
