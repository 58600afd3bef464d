import pytest

from router.client import AdapterRef, Client, Delta, Finished, FinishReason, Reason, Started, Turn
from router.types import AdapterEventKind, AdapterState


@pytest.fixture
def client(remote):
    with Client(remote.target, timeout=10) as made:
        yield made


def test_an_answer_carries_decision_usage_and_logprobs(client):
    answer = client.generate("Which chapter?", request_id="req-7")
    assert (answer.text, answer.response_id, answer.finish_reason) == (
        "Chapter I",
        "req-7",
        FinishReason.STOP,
    )
    assert answer.decision.adapter == AdapterRef("medical", "1.2.0")
    assert answer.decision.reason is Reason.CLASSIFIED
    assert answer.decision.votes[1].scores == {"medical": 0.93, "legal": 0.04}
    assert answer.decision.latency == pytest.approx(0.0004)
    assert (answer.usage.prompt_tokens, answer.usage.total_time) == (87, 1.5)
    assert answer.logprobs[0].top == (("B", 8, -2.5),)


def test_a_stream_starts_goes_on_and_finishes(client):
    started, *deltas, finished = client.stream("Which chapter?")
    assert isinstance(started, Started)
    assert started.decision.classifier == "examples"
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == "Chapter I"
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.LENGTH


def test_unsaid_sampling_stays_unsaid(client, remote):
    client.generate("hi")
    client.generate("hi", temperature=0.0, stop="END", max_tokens=5, labels={"team": "a"})
    plain, said = remote.inference.requests
    assert not plain.sampling.HasField("temperature")
    assert said.sampling.HasField("temperature")
    assert (list(said.sampling.stop), said.sampling.max_tokens) == (["END"], 5)
    assert dict(said.labels) == {"team": "a"}


def test_route_and_count_send_the_hints(client, remote):
    assert client.route("hi", domain="medical", unit="u1", explain=True).threshold == 0.5
    assert client.count_tokens([Turn("user", "hi")], adapter="medical@1.2.0").context_length == 2048
    route, count = remote.inference.requests
    assert (route.routing.domain, route.routing.unit, route.routing.explain) == ("medical", "u1", True)
    assert count.routing.adapter == "adapters/medical/versions/1.2.0"
    assert count.input.chat.messages[0].text == "hi"


def test_every_call_has_a_deadline_and_a_request_id(client, remote):
    client.generate("hi")
    client.generate("hi", timeout=3)
    client.generate("hi", timeout=None)
    first, second, none = remote.inference.remaining
    assert 5 < first < 10.5
    assert second < 3.5
    assert none is None or none > 1e6
    ids = {m["x-request-id"] for m in remote.inference.metadata}
    assert len(ids) == 3


@pytest.mark.slow
def test_a_refused_call_is_tried_again(client, remote):
    remote.inference.refusals = 1
    assert client.generate("hi").text == "Chapter I"
    assert len(remote.inference.requests) == 2
    assert len({m["x-request-id"] for m in remote.inference.metadata}) == 1


def test_a_refused_stream_is_tried_again(client, remote):
    remote.inference.refusals = 1
    assert isinstance(list(client.stream("hi"))[-1], Finished)


def test_leaving_a_stream_cancels_the_call(client, remote):
    remote.inference.hang = True
    for event in client.stream("hi"):
        if isinstance(event, Delta):
            break
    assert remote.inference.cancelled.wait(5)


def test_adapters_are_listed_over_all_pages(client, remote):
    assert [a.ref.name for a in client.adapters.list(page_size=2, task="t")] == [
        "code",
        "legal",
        "medical",
        "qa",
        "translation",
    ]
    assert [r.page_token for r in remote.adapters.requests] == ["", "2", "4"]
    assert remote.adapters.requests[0].task == "t"


def test_adapters_are_shown_loaded_unloaded_and_made_default(client, remote):
    shown = client.adapters.get("legal")
    assert (shown.state, shown.etag) == (AdapterState.QUARANTINED, "e1")
    assert "all zero" in shown.error
    assert client.adapters.load("medical", pinned=True).pinned
    assert client.adapters.unload("medical@1.0.0").freed_bytes == 4096
    change = client.adapters.set_default("medical@1.0.0", etag="e1")
    assert (change.adapter.default, change.previous) == (True, AdapterRef("medical", "1.2.0"))
    back = client.adapters.reset_default("medical")
    assert (back.adapter.ref.version, back.previous) == ("1.2.0", AdapterRef("medical", "1.0.0"))
    assert remote.adapters.requests.pop().name == "adapters/medical"
    names = [r.name for r in remote.adapters.requests]
    assert names[:2] == ["adapters/legal", "adapters/medical"]
    assert names[2:] == ["adapters/medical/versions/1.0.0"] * 2


def test_an_unsaid_pin_stays_unsaid(client, remote):
    client.adapters.load("medical")
    assert not remote.adapters.requests[0].HasField("pinned")


def test_watch_yields_events(client):
    events = list(client.adapters.watch())
    assert [e.kind for e in events] == [AdapterEventKind.ADDED, AdapterEventKind.REMOVED]
    assert events[0].adapter.ref == AdapterRef("medical", "1.0.0")


def test_an_unknown_option_is_refused_here(client):
    with pytest.raises(TypeError, match="temprature"):
        client.generate("hi", temprature=1.0)
