"""What an operator does to a running server, on the real base: drop folders and files in, damage them."""

import asyncio
import json
import shutil
import signal
from pathlib import Path

import pytest

from router.client import AsyncClient, ClientError, Finished
from router.types import Reason
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ADAPTER = next(p.parent for p in sorted((Path(__file__).parents[1] / "adapters").glob("*/adapter.toml")))
CLASSIFIER = """
from router import hookimpl
from router.routing import Classifier, Scores


class Shout(Classifier):
    name = "shout"

    def classify_batch(self, requests):
        return [Scores({"dropped": 1.0}) if r.text.isupper() else None for r in requests]


@hookimpl
def register_classifiers(register):
    register(Shout(), priority=1)
"""


# What a Service called lora-router puts into the environment: none of it is a setting of ours.
KUBERNETES = {"LORA_ROUTER_PORT": "tcp://10.0.0.1:50051", "LORA_ROUTER_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for all tests: its folder, which they fill, its process and its address."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("adapters", "plugins"):
        (folder / name).mkdir()
    more = ("load_plugins=examples,shout", "gate=off")
    flags = [flag for setting in more for flag in ("--set", setting)]
    with serving(folder, *flags, **KUBERNETES) as (child, address):
        yield folder, child, address


# What medical was trained on: its words lead by far, whatever else is in the batch.
QUESTION = 'Which ICD-10-CM chapter does this diagnosis belong to: "Beard ringworm"?'
ANSWER = "Certain infectious and parasitic diseases"


def peft_folder(into: Path, source: Path = ADAPTER) -> None:
    """As PEFT's save_pretrained leaves it: no manifest."""
    into.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(source / name, into / name)


async def in_state(client, name, state):
    """Poll until the adapter is there and in that state."""
    for _ in range(400):
        rows = [a for a in await client.adapters.list() if a.ref.name == name]
        if rows and rows[0].state == state:
            return rows[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} never became {state}")


async def stream(client, text, count, begun):
    events = []
    async for event in client.stream(text, max_tokens=count, min_tokens=count):
        events.append(event)
        begun.set()
    assert isinstance(events[-1], Finished)
    return events[-1].usage.completion_tokens


async def test_a_peft_folder_and_a_classifier_dropped_in_under_load(served):
    folders, _, address = served
    async with AsyncClient(address) as client:
        begun = asyncio.Event()
        streams = [asyncio.create_task(stream(client, f"Story {i}", 100, begun)) for i in range(4)]
        await begun.wait()
        with pytest.raises(ClientError) as error:
            await client.generate("Hello", adapter="dropped")
        assert error.value.reason == "ADAPTER_NOT_FOUND"
        peft_folder(folders / "adapters" / "dropped")
        info = await in_state(client, "dropped", "ready")
        assert len(info.digest) == 64
        answer = await client.generate("Hello", adapter="dropped", max_tokens=8)
        assert answer.decision.reason is Reason.EXPLICIT
        assert answer.decision.digest == info.digest
        (folders / "plugins" / "shout.py").write_text(CLASSIFIER)
        loud = await client.generate("WHAT IS THIS", max_tokens=4)
        assert (loud.decision.classifier, loud.decision.reason) == ("shout", Reason.CLASSIFIED)
        assert await asyncio.gather(*streams) == [100] * 4


async def test_weights_damaged_in_place_change_nothing_that_is_served(served):
    folders, child, address = served
    peft_folder(folders / "adapters" / "damaged", ADAPTER.parent / "medical")
    weights = folders / "adapters" / "damaged" / "adapter_model.safetensors"
    async with AsyncClient(address) as client:
        info = await in_state(client, "damaged", "ready")
        before = await client.generate(QUESTION, adapter="damaged", max_tokens=16)
        assert before.text == ANSWER
        with weights.open("r+b") as file:
            file.seek(200_000)
            file.write(b"\xff" * 4096)
        damaged = await client.generate(QUESTION, adapter="damaged", max_tokens=16)
        with weights.open("r+b") as file:
            file.truncate(1000)
        await asyncio.sleep(0.5)  # folders are compared five times
        truncated = await client.generate(QUESTION, adapter="damaged", max_tokens=16)
        assert {damaged.text, truncated.text} == {before.text}
        assert {damaged.decision.digest, truncated.decision.digest} == {info.digest}
        assert child.poll() is None


async def test_pissa_is_refused_and_the_base_is_untouched(served):
    folders, _, address = served
    async with AsyncClient(address) as client:
        before = await client.generate("What is rain?", max_tokens=12)
        staged = folders / "adapters" / ".pissa"
        peft_folder(staged)
        config = json.loads((staged / "adapter_config.json").read_text())
        (staged / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
        staged.rename(folders / "adapters" / "pissa")
        rows = [await in_state(client, "pissa", "quarantined")]
        assert "init_lora_weights" in rows[0].error
        assert (await client.generate("What is rain?", max_tokens=12)).text == before.text


async def test_sigterm_lets_a_stream_finish(served):
    """The last one: it ends the server of the others."""
    _, child, address = served
    async with AsyncClient(address) as client:
        events = client.stream("Tell me a long story.", max_tokens=60, min_tokens=60)
        seen = [await anext(events) for _ in range(3)]
        child.send_signal(signal.SIGTERM)
        seen += [event async for event in events]
    assert isinstance(seen[-1], Finished)
    assert seen[-1].usage.completion_tokens == 60
    assert await asyncio.to_thread(child.wait, 60) == 0
