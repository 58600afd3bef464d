from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    digest_of_mixture,
)
from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, RouterError
from router.replicas import messages
from router.replicas.messages import MUST_MATCH
from router.types import (
    SAMPLING_RANGES,
    Constraint,
    FinishReason,
    LabelProbabilities,
    LabelSettings,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from router.v1 import engine_pb2 as pb

INFO = BaseInfo("b", "0" * 64, "Fake", "float32", "cpu", 512, 256, {"q": (1, 2)})


def carried(error: RouterError) -> RouterError:
    sent = messages.error_message(error).SerializeToString()
    return messages.error_of(pb.EngineError.FromString(sent))


VOCABULARY = 1 << 17
number = st.floats(-1e6, 1e6)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
digest = st.binary(min_size=32, max_size=32).map(bytes.hex)
token = st.integers(0, VOCABULARY - 1)
tokens = st.lists(token, min_size=1, max_size=8)
unsigned = st.integers(0, 2**31)


def ranged(name: str) -> st.SearchStrategy[Any]:
    """Of a number of SamplingParams."""
    allowed = SAMPLING_RANGES[name]
    if allowed.kind is int:
        return st.integers(int(allowed.low), int(allowed.high))
    return st.floats(allowed.low, allowed.high, exclude_min=allowed.open_low)


constraints = st.one_of(
    st.builds(Constraint, st.sampled_from(["json_schema", "regex", "grammar", "quote"]), text),
    st.builds(Constraint, st.just("choices"), choices=st.lists(text, min_size=1, max_size=4).map(tuple)),
)
sampling = st.builds(
    SamplingParams,
    **{name: ranged(name) for name in SAMPLING_RANGES if name != "seed"},
    seed=st.none() | ranged("seed"),
    stop=st.lists(st.text("ab\u00e9", min_size=1, max_size=3), max_size=3).map(tuple),
    constraint=st.none() | constraints,
    logit_bias=st.dictionaries(token, st.floats(-100, 100, width=32), max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
)
jobs = st.builds(
    Job,
    request_id=text,
    tokens=tokens,
    params=sampling,
    adapter=st.none() | digest,
    deadline=st.none(),  # see `test_times_travel_as_durations`
    priority=st.integers(-(2**31), 2**31 - 1),
    background=st.booleans(),
    grammar=st.none(),  # which the replica makes
    tenant=text,
    share=st.floats(1e-3, 1e3),
    own_constraint=st.booleans(),
    shared=st.integers(0, 1),
    labels=st.none() | st.builds(LabelSettings, st.just(False), st.none() | st.floats(0.1, 10)),
)
readings = st.builds(
    PoolingRequest,
    tokens=tokens,
    context=tokens,
    depth=st.floats(0, 1),
    ends=unsigned,
    deadline=st.none(),
    background=st.booleans(),
    candidates=st.just(()),  # an engine reads these for itself, and what goes with them
    adapter=st.none(),
    tenant=st.just(""),
    shared=st.just(0),
)
alternatives = st.lists(st.tuples(text, token, number, st.binary(min_size=1, max_size=3)), max_size=3)
logprobs = st.builds(
    lambda name, id, value, part, top: TokenLogprob(
        name, id, value, tuple(one[:3] for one in top), part, tuple(one[3] for one in top)
    ),
    *(text, token, number, st.binary(max_size=3), alternatives),
)
deltas = st.builds(Delta, text, unsigned, st.lists(logprobs, max_size=3).map(tuple))
labels = st.builds(
    LabelProbabilities, st.lists(st.tuples(text, number), min_size=1).map(tuple), st.booleans()
)
ends = st.builds(
    Finished,
    reason=st.sampled_from(FinishReason),
    usage=st.builds(Usage, unsigned, unsigned, unsigned, number, number, number, unsigned),
    stop=text,
    labels=st.none() | labels,
)
statuses = st.builds(
    EngineStatus,
    **{
        one.name: {"int": unsigned, "bool": st.booleans(), "str": text}.get(
            one.type, st.lists(text).map(tuple)
        )
        for one in fields(EngineStatus)
        if one.name != "last_progress"
    },
    last_progress=st.just(0.0),
)
bases = st.builds(
    BaseInfo,
    **dict.fromkeys(("name", "digest", "architecture", "dtype", "device", "kernels", "weights"), text),
    **dict.fromkeys(("context_length", "vocab_size", "size_bytes"), unsigned),
    sites=st.dictionaries(text, st.tuples(unsigned, unsigned), max_size=3),
    abilities=st.frozensets(st.sampled_from(Ability)),
    chat_template=st.booleans(),
    tool_form=st.booleans(),
)


def sent(message: Any) -> Any:
    """As it comes out at the other end."""
    return type(message).FromString(message.SerializeToString())


def of(job: Job) -> pb.EngineCommand.Load | None:
    """The adapter of a job, as an edge sends it."""
    return None if job.adapter is None else pb.EngineCommand.Load(digest=job.adapter, folder="/a")


@given(jobs)
def test_jobs_come_as_they_went(job: Job) -> None:
    assert messages.job_of(sent(messages.submit(job, of(job))).submit, VOCABULARY) == job


@given(readings)
def test_readings_come_as_they_went(reading: PoolingRequest) -> None:
    assert messages.reading_of(sent(messages.read(reading)).read, VOCABULARY) == reading


def test_readings_of_candidates_stay_in_their_process() -> None:
    with pytest.raises(InvalidRequest, match="candidates"):
        messages.read(PoolingRequest([1], candidates=[2]))


@given(st.one_of(deltas, ends))
def test_events_come_as_they_went(what: Delta | Finished) -> None:
    event = pb.EngineEvent()
    messages.write_event(event, what)
    came = sent(event)
    if isinstance(what, Delta):
        assert messages.delta_of(came.delta) == what
    else:
        assert messages.finished_of(came.finished) == what


@given(statuses)
def test_statuses_come_as_they_went(status: EngineStatus) -> None:
    came = messages.status_of(sent(messages.state_message(status)))
    assert replace(came, last_progress=0.0) == status


@given(bases)
def test_bases_come_as_they_went(info: BaseInfo) -> None:
    assert messages.info_of(sent(messages.hello_message(info)).base) == info


@given(st.lists(st.tuples(digest, st.floats(-10, 10)), min_size=1, max_size=4).map(tuple))
def test_mixtures_come_as_they_went(parts: tuple[tuple[str, float], ...]) -> None:
    mixture = AdapterArtifact("mixture", "", digest_of_mixture(parts), {}, parts)
    folders = {digest: "/a" for digest, _ in parts}
    assert messages.mixture_of(sent(messages.load(mixture, folders))) == mixture


def test_an_adapter_that_is_nowhere_cannot_be_loaded_elsewhere() -> None:
    with pytest.raises(FailedPrecondition, match="'a' has no folder"):
        messages.load(AdapterArtifact("a", "1", "d", {}))


def test_more_than_a_message_may_have_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match=r"input: takes \d+ bytes on its way to a replica, and 1047552"):
        messages.submit(Job("r", [VOCABULARY - 1] * 400_000, SamplingParams()))


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


def test_times_travel_as_durations() -> None:
    now = time.monotonic()
    job = Job("r", [1], SamplingParams(), deadline=now + 5)
    message = messages.submit(job)
    assert message.submit.seconds_left == pytest.approx(5, abs=0.1)
    assert messages.job_of(message.submit, 256).deadline == pytest.approx(now + 5, abs=0.1)
    status = EngineStatus(running=3, last_progress=now - 2, host_adapters=("d",), failed="why", flaws=("f",))
    state = messages.state_message(status, draining=True)
    assert state.idle_seconds == pytest.approx(2, abs=0.1)
    assert state.draining
    again = messages.status_of(state)
    assert replace(again, last_progress=0.0) == replace(status, last_progress=0.0)
    assert again.last_progress == pytest.approx(now - 2, abs=0.1)


def hello(version: str = "1", **changed: Any) -> pb.HelloResponse:
    """Of a replica of that version."""
    found = messages.hello_message(replace(INFO, **changed))
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
    assert messages.fleet_of({"0": new, "1": old})[0].base == old.base
    assert messages.differences(old, new) == ""
    assert "abilities" in messages.differences(new, old)
    old.version = "2"
    _, others = messages.fleet_of({"0": new, "1": old})
    assert others.keys() == {"1"}
    assert others["1"].startswith("its abilities")


def test_a_fleet_is_what_most_of_its_replicas_are() -> None:
    fleet, others = messages.fleet_of({"0": hello(dtype="bfloat16"), "1": hello(), "2": hello()})
    assert fleet == hello()
    assert others == {"0": "its dtype is 'bfloat16', that of the others 'float32'"}
