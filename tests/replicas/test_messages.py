from __future__ import annotations

import time
from dataclasses import replace
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
    PoolingRequest,
    SiteDelta,
    TensorData,
)
from router.errors import FieldViolation, InvalidRequest, RouterError
from router.replicas import messages
from router.replicas.messages import MUST_MATCH, Answer, Hello, Upload
from router.types import Constraint, FinishReason, SamplingParams, TokenLogprob, Usage
from router.v1 import engine_pb2 as pb

INFO = BaseInfo("b", "0" * 64, "Fake", "float32", "cpu", 512, 256, {"q": (1, 2)})
PARAMS = SamplingParams(
    7, 2, 0.1, 0.9, 3, 0.05, 1.1, 0.2, -0.3, 2**60, ("a", "b"), 4, Constraint("regex", "x")
)


def carried(what: Any) -> Any:
    event = pb.EngineEvent()
    messages.write_event(event, 5, what)
    return messages.value_of(pb.EngineEvent.FromString(event.SerializeToString()))


def test_jobs_come_as_they_went() -> None:
    job = Job("r", [1, 2**31], PARAMS, "d", None, -3, True, None, "t", 0.25, True, 2)
    assert messages.job_of(messages.submit(1, job).submit) == job
    plain = Job("r", [1], SamplingParams())
    assert messages.job_of(messages.submit(1, plain).submit) == plain


def test_readings_come_as_they_went() -> None:
    for reading in (
        PoolingRequest([1], [2], 0.5, 3, None, True, -7),
        PoolingRequest([1], [2]),
        PoolingRequest([1], [], 0.0),
    ):
        assert messages.reading_of(messages.read(1, reading).read) == reading


def test_events_come_as_they_went() -> None:
    delta = Delta("x", 2, (TokenLogprob("x", 1, -0.5, (("y", 2, -1.0),)),))
    end = Finished(FinishReason.STOP, Usage(1, 2, 3, 0.1, 0.2, 0.3), "stop")
    for what in (delta, end, 0, 8, Answer.DONE, Answer.MISSING):
        assert carried(what) == what
    numbers = carried(np.arange(3, dtype=np.float64))
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [0, 1, 2]
    with pytest.raises(TypeError):
        carried("text")


def test_an_event_of_a_later_release_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not know"):
        messages.value_of(pb.EngineEvent(key=1))


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
    }
    return kind(*said.get(kind, ("why",)))


@pytest.mark.parametrize("kind", kinds())
def test_every_error_is_raised_there_as_it_was_here(kind: type[RouterError]) -> None:
    error = example(kind)
    again = carried(error)
    assert type(again) is kind
    assert (str(again), again.metadata) == (str(error), error.metadata)
    for name in ("violations", "retry_after", "got", "at_least"):
        if not issubclass(kind, errors.QuotaExceeded):  # which no engine raises
            assert getattr(again, name, None) == getattr(error, name, None)


def test_an_error_of_another_release_comes_by_its_code() -> None:
    class Odd(errors.ResourceExhausted):
        """Of an engine of somebody's own."""

    assert type(carried(Odd("why"))) is errors.ResourceExhausted
    event = pb.EngineEvent(error=pb.EngineError(kind="Newer", code="UNAVAILABLE", message="later"))
    assert type(messages.value_of(event)) is errors.Unavailable
    event.error.code = "NEWER"
    assert type(messages.value_of(event)) is errors.EngineFailed


def test_text_that_is_no_unicode_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        messages.submit(1, Job("r", [1], SamplingParams(stop=("\ud800",))))
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        messages.compile_(1, Constraint("regex", "\ud800"), "")


def uploaded(parts: list[pb.PutWeightsRequest]) -> AdapterArtifact:
    upload = Upload(parts[0].header)
    for part in parts[1:]:
        upload.add(part.piece)
    return upload.artifact()


def test_weights_come_as_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PIECE", 300)
    data = memoryview(bytes(range(250)) * 4)
    one, other = (TensorData("BF16", shape, data) for shape in ((10, 50), (50, 10)))
    adapter = AdapterArtifact("a", "1", "d", {"q": SiteDelta(one, other, 2.0)}, (("p", 0.5),), (1, 2))
    parts = list(messages.weights(adapter))
    assert len(parts) == 9
    assert uploaded(parts) == adapter
    with pytest.raises(InvalidRequest, match="1700 of 2000 bytes"):
        uploaded([*parts[:3], *parts[4:]])
    with pytest.raises(InvalidRequest, match="more bytes"):
        uploaded([*parts, parts[1]])


def test_times_travel_as_durations() -> None:
    now = time.monotonic()
    job = Job("r", [1], SamplingParams(), deadline=now + 5)
    message = messages.submit(1, job)
    assert message.submit.seconds_left == pytest.approx(5, abs=0.1)
    assert messages.job_of(message.submit).deadline == pytest.approx(now + 5, abs=0.1)
    status = EngineStatus(running=3, last_progress=now - 2, host_adapters=("d",), failed="why", flaws=("f",))
    state = messages.state_message(status, draining=True)
    assert state.idle_seconds == pytest.approx(2, abs=0.1)
    assert state.draining
    again = messages.status_of(state)
    assert replace(again, last_progress=0.0) == replace(status, last_progress=0.0)
    assert again.last_progress == pytest.approx(now - 2, abs=0.1)


def test_what_must_not_differ_is_named_and_the_rest_may() -> None:
    one = Hello(INFO, "i")
    assert messages.hello_of(messages.hello_message(one)) == one
    for field in MUST_MATCH:
        changed: dict[str, Any] = {field: "other"}
        assert list(messages.differences(one, replace(one, info=replace(INFO, **changed)))) == [field]
    other = replace(INFO, kernels="native", device="cuda:1", size_bytes=1)
    assert messages.differences(one, Hello(other, "j", "99.0", 99)) == {}
