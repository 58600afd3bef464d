from __future__ import annotations

import pickle
import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from router import errors
from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    Delta,
    EngineStatus,
    Finished,
    Job,
    Reading,
    SiteDelta,
    TensorData,
)
from router.errors import FieldViolation, RouterError
from router.fleet.messages import (
    Batch,
    Cancel,
    Compile,
    Event,
    Hello,
    Load,
    Post,
    Read,
    Submit,
    Unload,
    arrived,
    arrived_reading,
    differences,
    flipped,
    sent,
    sent_reading,
)
from router.types import Constraint, FinishReason, SamplingParams, TokenLogprob, Usage
from tests.engine.test_contract import fake_adapter

INFO = BaseInfo("b", "0" * 64, "Fake", "float32", "cpu", 512, 256, {"q": (1, 2)})


def carried(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol=5))


def test_messages_come_as_they_went() -> None:
    job = Job("r", [1, 2], SamplingParams(constraint=Constraint("choices", choices=("a",))), "d", 1.5)
    commands = (
        Submit(0, job),
        Read(1, Reading([1], [2], 0.5)),
        Compile(2, Constraint("regex", "a"), "t"),
        Load(3, "d", ("put", "down")),
        Unload(4, "d"),
        Cancel(0),
    )
    post = Post("edge", 7, commands)
    assert carried(post) == post
    delta = Delta("x", 1, (TokenLogprob("x", 1, -0.5, (("y", 2, -1.0),)),))
    end = Finished(FinishReason.STOP, Usage(1, 2), "stop")
    batch = Batch(1, (Event(0, delta), Event(0, end), Event(3, 8)), EngineStatus(running=1))
    assert carried(batch) == batch
    assert carried(Hello(INFO, "1")) == Hello(INFO, "1")
    numbers = np.arange(3, dtype=np.float32)
    assert (carried(Event(1, numbers)).what == numbers).all()


def kinds(kind: type[RouterError] = RouterError) -> list[type[RouterError]]:
    below = [found for child in kind.__subclasses__() for found in kinds(child)]
    return [kind, *below] if kind.__module__ == "router.errors" else below


def example(kind: type[RouterError]) -> RouterError:
    said: dict[type[RouterError], tuple[Any, ...]] = {
        errors.InvalidRequest: ([FieldViolation("a", "b")],),
        errors.PromptTooLong: (10, 20),
        errors.NotActivated: ((1, 2),),
        errors.NotFound: ("adapter", "x"),
        errors.Unavailable: ("later", 7.0),
        errors.QuotaExceeded: ("much", "tokens", 2.0, "tenant"),
    }
    return kind(*said.get(kind, ("why",)))


@pytest.mark.parametrize("kind", kinds())
def test_every_error_is_raised_there_as_it_was_here(kind: type[RouterError]) -> None:
    error = example(kind)
    again = carried(error)
    assert type(again) is kind
    assert (str(again), again.__dict__) == (str(error), error.__dict__)


def test_weights_are_carried_beside_the_message_without_a_copy() -> None:
    bytes_of = memoryview(b"\x00\x01" * 500)
    tensor, other = (TensorData("BF16", shape, bytes_of) for shape in ((10, 50), (50, 10)))
    adapter = AdapterArtifact("a", "1", "d", {"q": SiteDelta(tensor, other, 2.0)})
    beside: list[pickle.PickleBuffer] = []
    data = pickle.dumps(adapter, protocol=5, buffer_callback=beside.append)
    assert (len(beside), len(data) < 1000) == (2, True)
    again = pickle.loads(data, buffers=beside)
    assert again == adapter
    assert np.shares_memory(
        np.frombuffer(again.sites["q"].a.data, np.uint8), np.frombuffer(bytes_of, np.uint8)
    )
    assert carried(fake_adapter("a")) == fake_adapter("a")
    with pytest.raises(pickle.PicklingError):  # old protocols have no buffers
        pickle.dumps(tensor, protocol=4)


def test_times_travel_as_durations() -> None:
    now = time.monotonic()
    job = Job("r", [1], SamplingParams(), deadline=now + 5)
    assert sent(job).deadline == pytest.approx(5, abs=0.1)
    assert arrived(sent(job)).deadline == pytest.approx(now + 5, abs=0.1)
    reading = Reading([1], depth=0.5, deadline=now + 3)
    assert arrived_reading(sent_reading(reading)).deadline == pytest.approx(now + 3, abs=0.1)
    status = EngineStatus(last_progress=now - 2)
    assert flipped(status).last_progress == pytest.approx(2, abs=0.1)
    assert flipped(flipped(status)).last_progress == pytest.approx(now - 2, abs=0.1)
    assert sent(Job("r", [1], SamplingParams())).deadline is None
    assert arrived(Job("r", [1], SamplingParams())).deadline is None


def test_whatever_differs_is_named() -> None:
    one = Hello(INFO, "1.0")
    assert differences(one, replace(one)) == {}
    for field in fields(BaseInfo):
        changed: dict[str, Any] = {field.name: "other"}
        other = replace(one, info=replace(INFO, **changed))
        assert list(differences(one, other)) == [field.name]
    assert differences(one, replace(one, version="1.1")) == {"version": ("1.0", "1.1")}
    assert list(differences(one, replace(one, wire=99))) == ["wire"]
