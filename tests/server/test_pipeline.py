"""From a request to the engine: who may answer, sampling in layers, and a prompt that is never cut."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.config import Settings
from router.engine.base import AdapterArtifact, Delta, Finished, batches
from router.engine.fake import FakeEngine
from router.errors import (
    AdapterNotFound,
    DataLoss,
    EngineFailed,
    InvalidRequest,
    NotActivated,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
)
from router.ports import End, Stage
from router.server import pipeline
from router.server.pipeline import Candidates, Resting, fit
from router.server.watching import Watched
from router.types import (
    AdapterRef,
    Constraint,
    Decision,
    FinishReason,
    PromptTemplate,
    Reason,
    Request,
    Sampling,
    Turn,
    Usage,
)
from router.v1 import inference_pb2 as pb
from tests.fakes import FakeRegistry, adapter
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, call_of, details, failure

NEW, OLD, GONE = AdapterRef("medical", "1.1.0"), AdapterRef("medical", "1.0.0"), AdapterRef("medical", "0")


def test_said_beats_adapter_beats_default() -> None:
    params = fit(
        Sampling(temperature=0.0), Sampling(temperature=0.7, top_p=0.9, max_tokens=64), 10, 1000, 4096
    )
    assert (params.temperature, params.top_p, params.max_tokens, params.top_k) == (0.0, 0.9, 64, 0)


def test_unsaid_max_tokens_becomes_what_fits() -> None:
    assert fit(Sampling(), Sampling(), 900, 1000, 4096).max_tokens == 100
    assert fit(Sampling(), Sampling(max_tokens=500), 10, 1000, 200).max_tokens == 200
    assert fit(Sampling(min_tokens=300), Sampling(), 10, 1000, 4096).max_tokens == 300


def test_said_max_tokens_must_fit() -> None:
    assert fit(Sampling(max_tokens=100), Sampling(), 900, 1000, 4096).max_tokens == 100
    with pytest.raises(PromptTooLong) as caught:
        fit(Sampling(max_tokens=101), Sampling(), 900, 1000, 4096)
    assert caught.value.metadata == {"limit": "1000", "got": "1001"}


@pytest.mark.parametrize(("prompt", "said"), [(1000, Sampling()), (999, Sampling(min_tokens=2))])
def test_no_room_is_too_long(prompt: int, said: Sampling) -> None:
    with pytest.raises(PromptTooLong):
        fit(said, Sampling(), prompt, 1000, 4096)


def test_an_adapters_min_tokens_yields_to_the_callers_max() -> None:
    assert fit(Sampling(max_tokens=5), Sampling(min_tokens=20), 10, 1000, 4096).min_tokens == 5


async def test_the_engine_is_told_whom_it_is_for_and_what_is_everybodys(
    fakes: SimpleNamespace, start_server: Start, connect: Connect, tmp_path: Path
) -> None:
    """How far the template reaches is the server's to say: not for a raw prompt that spells it."""
    clients = write_clients(tmp_path, more='tenant = "acme"', asker=("infer",))
    fakes.registry.prompts["medical"] = PromptTemplate("You are a doctor.", "Q: {prompt}")
    server = await start_server(**vars(fakes), clients=clients.path)
    inference, metadata = connect(server).inference, bearer(clients.asker)
    routing = {"adapter": "adapters/medical"}
    beginning = "You are a doctor.\nQ: "
    await inference.Generate(ask("Am I ill?", routing=routing), metadata=metadata)
    own = pb.Chat(messages=[{"role": 1, "text": "You are kind."}, {"role": 2, "text": "Am I ill?"}])
    await inference.Generate(pb.GenerateRequest(input=pb.Input(chat=own), routing=routing), metadata=metadata)
    raw = pb.Input(raw_prompt=beginning + "Am I ill?")
    await inference.Generate(pb.GenerateRequest(input=raw, routing=routing), metadata=metadata)
    assert [job.tenant for job in fakes.engine.jobs] == ["acme"] * 3
    assert [job.shared for job in fakes.engine.jobs] == [len(beginning), len("You are "), 0]


async def test_a_prompt_over_the_context_is_never_cut(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * 5000)))
    info = details(refused)["ErrorInfo"]
    assert (refused.code().name, info.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert (info.metadata["limit"], info.metadata["got"]) == ("4096", "5001")


@pytest.mark.parametrize("counted", [True, False])
async def test_routing_is_told_of_a_decision_once_and_only_for_an_answer(
    fakes: SimpleNamespace, counted: bool
) -> None:
    made = pipeline.Pipeline(Settings(), fakes.engine, fakes.registry, fakes.router)
    await made._routed(Request("r", (Turn("user", "medical"),)), call_of(), counted)
    assert [one.adapter for one in fakes.router.answers] == [OLD] * counted
    made.close()


def choices(*versions: AdapterRef | None, routed: AdapterRef | None = OLD, resting: Resting | None = None):
    registry = FakeRegistry(FakeEngine(), [adapter("medical"), adapter("medical", "1.1.0")])
    assignment = SimpleNamespace(versions=versions) if versions else None
    return Candidates(Decision(routed, Reason.CLASSIFIED), assignment, registry, resting or Resting())


def tried(found: Candidates, error: Exception) -> list[AdapterRef | None]:
    """Who was chosen where none can answer; the last error is raised again."""
    seen = []

    def try_each() -> None:
        for decision in found:
            seen.append(decision.adapter)
            found.failed(error)

    with pytest.raises(type(error)) as caught:
        try_each()
    assert caught.value is error
    return seen


@pytest.mark.parametrize(
    ("versions", "routed", "order"),
    [
        ((), OLD, [OLD]),
        ((), None, [None]),
        ((NEW, OLD), OLD, [NEW, OLD]),
        ((NEW, OLD), NEW, [NEW, OLD]),
        ((NEW, None), OLD, [NEW, None, OLD]),
        ((GONE, NEW, GONE), None, [NEW, None]),
    ],
)
def test_the_arm_then_control_then_the_one_routed_to(versions, routed, order):
    assert tried(choices(*versions, routed=routed), DataLoss("damaged")) == order


def test_a_choice_is_placed_with_what_the_registry_says():
    new, base = choices(NEW, None, routed=NEW)
    assert (new.adapter, base.adapter, base.digest, base.domain) == (NEW, None, "", "")
    (first, *_) = choices(NEW)
    assert (first.adapter, first.digest, first.domain) == (NEW, adapter("medical", "1.1.0").digest, "medical")


def test_the_base_stands_in_for_an_adapter_that_would_not_act_unless_it_was_named() -> None:
    error = NotActivated((1, 2))
    assert tried(choices(), error) == [OLD, None]
    assert tried(choices(NEW, OLD), error) == [NEW, OLD, None]
    named = Candidates(Decision(OLD, Reason.EXPLICIT), None, FakeRegistry(FakeEngine(), []), Resting())
    assert tried(named, error) == [OLD]
    resting = Resting()
    tried(choices(NEW, OLD, resting=resting), error)
    assert (resting.reason(NEW), resting.reason(OLD)) == ("", "")


@pytest.mark.parametrize("named", [False, True])
async def test_an_adapter_that_would_not_act_is_never_said_to_have_answered(
    named: bool, fakes: SimpleNamespace, start_server: Start, connect: Connect
) -> None:
    inference = connect(await start_server(**vars(fakes))).inference
    info = await fakes.registry.load(fakes.registry.get("medical").ref)
    await fakes.engine.load(
        AdapterArtifact("medical", "1.0.0", info.digest, {}, invocation_tokens=tuple(b"Answer:"))
    )
    routing = {"adapter": "adapters/medical"} if named else {}
    active = await inference.Generate(ask("Some medical advice? Answer:", routing=routing))
    assert active.decision.adapter == info.ref.resource
    if named:
        refused = await failure(inference.Generate(ask("Some medical advice?", routing=routing)))
        found = details(refused)
        assert (refused.code().name, found["ErrorInfo"].reason) == (
            "INVALID_ARGUMENT",
            "ADAPTER_NOT_ACTIVATED",
        )
        assert [v.field for v in found["BadRequest"].field_violations] == ["input"]
    else:
        answer = await inference.Generate(ask("Some medical advice?", routing=routing))
        assert (answer.decision.adapter, answer.decision.digest) == ("", "")
        assert fakes.engine.jobs[-1].adapter is None


@pytest.mark.parametrize("error", [Unavailable("later"), InvalidRequest([]), EngineFailed("x")])
def test_what_no_other_could_do_better_is_raised_at_once(error):
    assert tried(choices(NEW, OLD), error) == [NEW]


@pytest.mark.parametrize(
    ("error", "rests"),
    [
        (DataLoss("damaged"), True),
        (AdapterNotFound("x"), True),
        (PromptTooLong(8, 9), False),
        (ResourceExhausted("x"), False),
    ],
    ids=lambda value: getattr(value, "reason", value),
)
def test_only_a_fault_of_its_own_lets_a_version_rest(error, rests, monkeypatch):
    resting = Resting()
    first = choices(NEW, OLD, resting=resting)
    assert next(iter(first)).adapter == NEW
    first.failed(error)
    assert first.degraded == error.reason
    again = choices(NEW, OLD, resting=resting)
    assert next(iter(again)).adapter == (OLD if rests else NEW)
    assert again.degraded == (error.reason if rests else "")
    monkeypatch.setattr(pipeline, "REST_SECONDS", 0.0)
    resting = Resting()
    resting.add(NEW, error)
    assert next(iter(choices(NEW, OLD, resting=resting))).adapter == NEW


def test_the_last_is_tried_though_it_rests_and_a_rest_is_not_made_longer(monkeypatch):
    resting = Resting()
    resting.add(OLD, DataLoss("damaged"))
    monkeypatch.setattr(pipeline, "REST_SECONDS", 60.0)
    resting.add(OLD, AdapterNotFound("x"))
    resting.add(None, DataLoss("the base"))
    assert resting.reason(OLD) == "DATA_LOSS"
    assert resting.reason(None) == ""
    assert next(iter(choices(OLD, resting=resting))).adapter == OLD


def test_the_last_one_that_is_gone_says_so():
    with pytest.raises(AdapterNotFound):
        list(choices(NEW, GONE, routed=NEW))


def test_constraints_go_by_layers_and_can_be_taken_back() -> None:
    mine, theirs = Constraint("regex", "a"), Constraint("choices", choices=("b",))
    free = Constraint("unconstrained")
    assert fit(Sampling(), Sampling(constraint=theirs), 10, 1000, 4096).constraint == theirs
    assert fit(Sampling(constraint=mine), Sampling(constraint=theirs), 10, 1000, 4096).constraint == mine
    assert fit(Sampling(constraint=free), Sampling(constraint=theirs), 10, 1000, 4096).constraint is None


# -- A watched generation: the same events, one begin and one end.


USAGE = Usage(completion_tokens=2, total_time=1.0)
STOP = Finished(FinishReason.STOP, USAGE)


class Given:
    """A generation that gives these events."""

    def __init__(self, *events: Delta | Finished | Exception) -> None:
        self.events, self.cancelled = events, False

    async def __aiter__(self):
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.began_times, self.ends = 0, []

    def began(self) -> None:
        self.began_times += 1

    def ended(self, end: End) -> None:
        self.ends.append(end)


async def watch(*events, error=None, stopped="", take=100) -> tuple[Seen, list]:
    seen, got = Seen(), []
    watched = Watched(Given(*events), [seen])
    try:
        async with aclosing(batches(watched, 1)) as each:
            async for batch in each:
                got.extend(batch)
                if len(got) == take:
                    break
    except EngineFailed as raised:
        error = raised
    watched.end(error, stopped)
    return seen, got


async def test_a_whole_answer():
    events = (Delta("one"), Delta(" two"), STOP)
    seen, got = await watch(*events)
    assert tuple(got) == events
    assert seen.began_times == 1
    assert seen.ends == [End(FinishReason.STOP, "one two", USAGE)]


async def test_an_answer_of_one_token_without_text_has_begun():
    seen, _ = await watch(STOP)
    assert seen.began_times == 1


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
async def test_what_ends_in_the_queue_never_began(reason):
    seen, _ = await watch(Finished(reason), error=Unavailable("over"))
    assert seen.began_times == 0
    (end,) = seen.ends
    assert (end.reason, end.error, end.cancelled) == (None, "UNAVAILABLE", False)


async def test_a_step_that_fails_before_the_first_token_ends_what_never_began():
    seen, _ = await watch(EngineFailed("boom"))
    assert seen.began_times == 0
    assert [(end.error, end.stage) for end in seen.ends] == [("ENGINE_FAILED", Stage.PREFILL)]


async def test_a_user_who_leaves():
    seen, _ = await watch(Delta("one"), Delta(" two"), STOP, error=asyncio.CancelledError(), take=2)
    (end,) = seen.ends
    assert (end.reason, end.text, end.error, end.cancelled) == (None, "one two", "", True)
    assert (end.usage.completion_tokens, end.stage) == (2, Stage.STREAM)
    assert 0 <= end.usage.time_to_first_token <= end.usage.total_time


async def test_a_server_that_stops_is_no_user_who_leaves():
    seen, _ = await watch(Delta("one"), error=asyncio.CancelledError(), stopped="DRAINING", take=1)
    (end,) = seen.ends
    assert (end.error, end.cancelled) == ("DRAINING", False)


async def test_whoever_leaves_after_the_end_has_the_answer():
    seen, _ = await watch(Delta("one"), STOP, error=asyncio.CancelledError())
    assert seen.ends == [End(FinishReason.STOP, "one", USAGE)]


async def test_a_watcher_that_raises_costs_nobody_anything(caplog):
    class Broken(Seen):
        def began(self) -> None:
            raise RuntimeError("broken")

        def ended(self, end: End) -> None:
            raise RuntimeError("broken")

    seen = Seen()
    watched = Watched(Given(Delta("one"), STOP), [Broken(), seen])
    assert [event async for batch in batches(watched, 1) for event in batch] == [Delta("one"), STOP]
    watched.end(None)
    assert (seen.began_times, len(seen.ends)) == (1, 1)
    assert caplog.text.count("a watcher failed") == 2


def test_cancelling_reaches_the_engine():
    given = Given()
    Watched(given, []).cancel()
    assert given.cancelled
