"""The A/A self-test against a real server with a fake engine, sound and with faults put in."""

import asyncio
import json
from importlib import import_module
from random import Random
from types import SimpleNamespace

import pytest

from router.cli.command import CliError
from router.cli.main import run
from router.extensions.experiments.cli.aa import aa
from router.extensions.experiments.runtime import LiveExperiments
from tests.commands import cli, own_folder, remote
from tests.extensions.experiments.memory_store import MemoryStore

__all__ = ["cli", "own_folder", "remote"]

pytestmark = pytest.mark.slow
COMMAND = import_module("router.extensions.experiments.cli.aa")  # the package has a function of that name


class LosingStore(MemoryStore):
    """Loses each third exposure of arm b."""

    lost = 0

    def expose(self, exposures):
        kept = []
        for exposure in exposures:
            self.lost += exposure.arm == "b"
            if exposure.arm != "b" or self.lost % 3:
                kept.append(exposure)
        super().expose(kept)


@pytest.fixture
async def self_test(start_server, fakes, monkeypatch, capsys):
    """Run `experiments aa` against a server with experiments in `store`. Salts are the same in each run: one
    test in a thousand finds drawn ones uneven."""
    drawn = Random(1)
    salts = SimpleNamespace(token_hex=lambda size: drawn.randbytes(size).hex())
    monkeypatch.setattr("router.extensions.experiments.assignment.secrets", salts)

    async def call(store, *arguments, loses=False):
        monkeypatch.setattr(COMMAND, "WINDOW", 4.0)
        if loses:  # what is lost stays lost, so there is no sense in waiting for it
            monkeypatch.setattr(COMMAND, "SLACK", 0.5)
            monkeypatch.setattr(COMMAND, "TRIES", 2)
        live = LiveExperiments(store, poll_seconds=60.0)
        await live.start()
        try:
            app = await start_server(**vars(fakes), experiments=live)
            flags = ("--server", app.address, "--units", "120", "--json")
            code = await asyncio.to_thread(run, ["experiments", "aa", *flags, *arguments])
            await app.stop()
        finally:
            await live.close()
        out, err = capsys.readouterr()
        found = json.loads(out) if out else []
        return code, {f["name"]: (f["sound"], f["text"]) for f in found}, err

    return call


async def test_a_sound_pipeline_is_found_sound_and_left_clean(self_test):
    store = MemoryStore()
    code, found, err = await self_test(store, "--route", "medical")
    assert (code, err) == (0, "")
    assert list(found)[:5] == ["requests", "assignment", "logging", "outcomes", "sample-ratio"]
    assert {"error-rate", "verdict"} < set(found)
    assert all(sound for sound, _ in found.values())
    assert found["requests"][1].startswith("132 answers in the experiment, 0 outside")
    assert found["outcomes"][1] == "120 counted of 120 sent; 12 sent twice, each counted once"
    assert store.list() == ()


async def test_other_weights(self_test):
    code, found, err = await self_test(
        MemoryStore(), "--route", "base", "--prompt", "hello", "--weights", "80/10/10"
    )
    assert (code, err) == (0, "")
    assert "2 arms against a" in found["error-rate"][1]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--route", "medical", "--weights", "1"), 2, "--weights: must be shares above 0 such as 90/10"),
        (("--route", "dental"), 1, "lora-router adapters list"),
    ],
)
async def test_what_cannot_be_tested_is_told(self_test, arguments, code, told):
    store = MemoryStore()
    found, _, err = await self_test(store, *arguments)
    assert found == code
    assert told in err
    assert store.list() == ()


async def test_lost_exposures_are_found(self_test):
    code, found, err = await self_test(LosingStore(), "--route", "medical", loses=True)
    assert code == 1
    assert not found["logging"][0]
    assert "unsound:" in err
    assert "logging" in err


async def test_prompts_that_the_route_does_not_get_are_told(self_test):
    code, found, _ = await self_test(MemoryStore(), "--route", "base", "--prompt", "a medical question")
    assert code == 1
    assert "120 outside" in found["requests"][1]
    assert "--prompt" in found["requests"][1]


def test_too_few_units_are_refused():
    with pytest.raises(CliError, match="--units must be 10 or more, not 3"):
        aa("medical", units=3)
