"""What an operator does to a running server, on the real base: drop folders and files in, damage them."""

import asyncio
import json
import shutil
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


@pytest.fixture
def folders(tmp_path):
    for name in ("adapters", "plugins"):
        (tmp_path / name).mkdir()
    return tmp_path


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


async def stream(client, text, count):
    events = [event async for event in client.stream(text, max_tokens=count, min_tokens=count)]
    assert isinstance(events[-1], Finished)
    return events[-1].usage.completion_tokens


async def test_a_peft_folder_and_a_classifier_dropped_in_under_load(folders):
    allowed = ("--set", "load_plugins=keywords,linear,shout", "--gate", "off")
    async with serving(folders, *allowed) as (_, address), AsyncClient(address) as client:
        streams = [asyncio.create_task(stream(client, f"Story {i}", 200)) for i in range(4)]
        await asyncio.sleep(1)
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
        assert await asyncio.gather(*streams) == [200] * 4


async def test_weights_damaged_in_place_change_nothing_that_is_served(folders):
    peft_folder(folders / "adapters" / "dropped", ADAPTER.parent / "medical")
    weights = folders / "adapters" / "dropped" / "adapter_model.safetensors"
    async with serving(folders) as (child, address), AsyncClient(address) as client:
        info = await in_state(client, "dropped", "ready")
        before = await client.generate(QUESTION, adapter="dropped", max_tokens=16)
        assert before.text == ANSWER
        with weights.open("r+b") as file:
            file.seek(200_000)
            file.write(b"\xff" * 4096)
        damaged = await client.generate(QUESTION, adapter="dropped", max_tokens=16)
        with weights.open("r+b") as file:
            file.truncate(1000)
        await asyncio.sleep(2)
        truncated = await client.generate(QUESTION, adapter="dropped", max_tokens=16)
        assert {damaged.text, truncated.text} == {before.text}
        assert {damaged.decision.digest, truncated.decision.digest} == {info.digest}
        assert child.returncode is None


async def test_pissa_is_refused_and_the_base_is_untouched(folders):
    async with serving(folders) as (_, address), AsyncClient(address) as client:
        before = await client.generate("What is rain?", max_tokens=12)
        staged = folders / "adapters" / ".pissa"
        peft_folder(staged)
        config = json.loads((staged / "adapter_config.json").read_text())
        (staged / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
        staged.rename(folders / "adapters" / "pissa")
        rows = [await in_state(client, "pissa", "quarantined")]
        assert "init_lora_weights" in rows[0].error
        assert (await client.generate("What is rain?", max_tokens=12)).text == before.text
