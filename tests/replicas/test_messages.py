from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from router import errors
from router.engine.base import (
    Ability,
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
from router.errors import ConfigError, FieldViolation, InvalidRequest, RouterError
from router.replicas import messages
from router.replicas.messages import MUST_MATCH
from router.types import (
    Constraint,
    FinishReason,
    LabelProbabilities,
    LabelSettings,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from router.v1 import engine_pb2 as pb
from tests.replicas.local import messages_of

INFO = BaseInfo("b", "0" * 64, "Fake", "float32", "cpu", 512, 256, {"q": (1, 2)})
PARAMS = SamplingParams(
    7,
    min_tokens=2,
    temperature=0.1,
    top_p=0.9,
    top_k=3,
    min_p=0.05,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    presence_penalty=-0.3,
    seed=2**60,
    stop=("a", "b"),
    logprobs=4,
    constraint=Constraint("regex", "x"),
    logit_bias=((3, -100.0), (7, 0.5)),
)


def carried(error: RouterError) -> RouterError:
    sent = messages.error_message(error).SerializeToString()
    return messages.error_of(pb.EngineError.FromString(sent))


def test_jobs_come_as_they_went() -> None:
    job = Job("r", [1, 2**31], PARAMS, "d", None, -3, True, None, "t", 0.25, True, 2)
    assert messages.job_of(messages.submit(job).submit) == job
    plain = Job("r", [1], SamplingParams())
    assert messages.job_of(messages.submit(plain).submit) == plain
    preferred = Constraint("choices", choices=("a", "b"), prior=(0.25, -1.0))
    corrected = Job("r", [1], SamplingParams(constraint=preferred))
    assert messages.job_of(messages.submit(corrected).submit) == corrected
    for labels in (LabelSettings(), LabelSettings(temperature=1.5)):
        labelled = replace(plain, labels=labels)
        assert messages.job_of(messages.submit(labelled).submit) == labelled


def test_readings_come_as_they_went() -> None:
    for reading in (
        PoolingRequest([1], [2], 0.5, 3, None, True, -7),
        PoolingRequest([1], [2]),
        PoolingRequest([1], [], 0.0),
    ):
        assert messages.reading_of(messages.read(reading).read) == reading


def test_events_come_as_they_went() -> None:
    part = TokenLogprob("\ufffd", 3, -0.5, (("y", 2, -1.0), ("\ufffd", 3, -2.0)), b"\xf0", (b"", b"\xf0"))
    delta = Delta("x", 2, (TokenLogprob("x", 1, -0.5, (("y", 2, -1.0),)), part))
    labels = LabelProbabilities((("a", 0.75), ("b", 0.25)), True)
    end = Finished(FinishReason.STOP, Usage(1, 2, 3, 0.1, 0.2, 0.3), "stop", labels)
    event = pb.EngineEvent()
    messages.write_event(event, delta)
    assert messages.delta_of(event.delta) == delta
    messages.write_event(event, end)
    assert messages.finished_of(event.finished) == end


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
    if kind is errors.Overloaded:
        return errors.Overloaded("full", 7.0, bound="engine")
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
    event = pb.EngineError(kind="Newer", code="UNAVAILABLE", message="later")
    assert type(messages.error_of(event)) is errors.Unavailable
    event.code = "NEWER"
    assert type(messages.error_of(event)) is errors.EngineFailed


def test_text_that_is_no_unicode_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        messages.submit(Job("r", [1], SamplingParams(stop=("\ud800",))))
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        messages.compile_(Constraint("regex", "\ud800"), "")


async def uploaded(parts: list[pb.PutWeightsRequest]) -> AdapterArtifact:
    return await messages.artifact_of(messages_of(parts))


async def test_weights_come_as_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PIECE", 300)
    data = memoryview(bytes(range(250)) * 4)
    one, other = (TensorData("BF16", shape, data) for shape in ((10, 50), (50, 10)))
    adapter = AdapterArtifact("a", "1", "d", {"q": SiteDelta(one, other, 2.0)}, (("p", 0.5),), (1, 2))
    parts = list(messages.weights(adapter))
    assert len(parts) == 9
    assert await uploaded(parts) == adapter
    with pytest.raises(InvalidRequest, match="1700 of 2000 bytes"):
        await uploaded([*parts[:3], *parts[4:]])
    with pytest.raises(InvalidRequest, match="more bytes"):
        await uploaded([*parts, parts[1]])
    with pytest.raises(InvalidRequest, match="header: is missing"):
        await uploaded([])


def test_times_travel_as_durations() -> None:
    now = time.monotonic()
    job = Job("r", [1], SamplingParams(), deadline=now + 5)
    message = messages.submit(job)
    assert message.submit.seconds_left == pytest.approx(5, abs=0.1)
    assert messages.job_of(message.submit).deadline == pytest.approx(now + 5, abs=0.1)
    status = EngineStatus(running=3, last_progress=now - 2, host_adapters=("d",), failed="why", flaws=("f",))
    state = messages.state_message(status, draining=True)
    assert state.idle_seconds == pytest.approx(2, abs=0.1)
    assert state.draining
    again = messages.status_of(state)
    assert replace(again, last_progress=0.0) == replace(status, last_progress=0.0)
    assert again.last_progress == pytest.approx(now - 2, abs=0.1)


def hello(version: str = "1", **changed: Any) -> pb.HelloResponse:
    """Of a replica of that version."""
    found = messages.hello_message(replace(INFO, **changed), "i")
    found.version = version
    return found


@pytest.mark.parametrize("field", MUST_MATCH)
def test_what_must_not_differ_is_named(field: str) -> None:
    changed: Any = {"sites": {}, "abilities": frozenset(), "chat_template": False}.get(field)
    changed = 99 if isinstance(getattr(INFO, field), int) and changed is None else changed
    changed = "other" if changed is None else changed
    found = messages.differences(hello(), hello(**{field: changed}))
    assert found.startswith("its layers" if field == "sites" else f"its {field} is ")
    assert ";" not in found


def test_the_rest_may_differ() -> None:
    assert messages.info_of(hello().base) == INFO
    other = hello("99.0", kernels="native", device="cuda:1", size_bytes=1)
    assert messages.differences(hello(), other) == ""


def test_what_a_later_release_can_do_more_is_left_out_until_all_can() -> None:
    new, old = hello("2"), hello("1", abilities=INFO.abilities - {Ability.ACTIVATED})
    assert messages.check_alike({"0": new, "1": old}).base == old.base
    assert messages.differences(old, new) == ""
    assert "abilities" in messages.differences(new, old)
    old.version = "2"
    with pytest.raises(ConfigError, match="replica 1 cannot be one of this fleet: its abilities"):
        messages.check_alike({"0": new, "1": old})
