from __future__ import annotations

from types import SimpleNamespace

from router.server.app import ServerApp
from router.v1 import inference_pb2 as pb
from tests.server.helpers import ask, stream


async def test_generate_tells_who_answered(stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask("a medical question"))
    assert reply.text.endswith(" a medical question")
    assert reply.decision.adapter == "adapters/medical/versions/1.0.0"
    assert reply.text.startswith(f"[{reply.decision.digest[:8]}]")
    assert reply.decision.reason == pb.DECISION_REASON_CLASSIFIED
    assert reply.finish_reason == pb.FINISH_REASON_STOP
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (18, 4)
    assert not reply.decision.votes


async def test_stream_is_started_deltas_finished(stubs: SimpleNamespace) -> None:
    events = [event async for event in stubs.inference.StreamGenerate(stream())]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    assert "".join(event.delta.text for event in events) == "[base] one two three"
    assert sum(event.delta.tokens for event in events) == 4
    assert events[0].started.decision.reason == pb.DECISION_REASON_ABSTAINED


async def test_nothing_is_left_behind(server: ServerApp, stubs: SimpleNamespace) -> None:
    await stubs.inference.Generate(ask("legal"))
    assert all(info.leases == 0 for info in server.registry.list())
    assert server.lifecycle.in_flight == 0
    assert not server.engine.status().busy


async def test_the_base_is_asked_for_by_its_name(stubs: SimpleNamespace) -> None:
    for name in ("base", "adapters/base"):
        request = pb.GenerateRequest(input=pb.Input(text="hello"), routing=pb.Routing(adapter=name))
        decision = (await stubs.inference.Generate(request)).decision
        assert (decision.adapter, decision.reason) == ("", pb.DECISION_REASON_EXPLICIT)
