"""Feedback counts as the outcome `feedback` in experiments whose plan has this metric."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from router.extensions.experiments.model import FEEDBACK, Kind, MetricSpec
from router.v1 import feedback_pb2 as pb
from router.v1 import feedback_pb2_grpc
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.lab import answer, experimenting, running
from tests.server.helpers import Connect, Start


@pytest.mark.parametrize("planned", [True, False])
async def test_the_first_feedback_on_an_answer_counts(
    planned: bool,
    fakes: SimpleNamespace,
    start_server: Start,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    async with experimenting(MemoryStore(), fakes, start_server, connect) as stubs:
        await running(stubs, primary=MetricSpec(FEEDBACK if planned else "solved", Kind.PROPORTION))
        service = feedback_pb2_grpc.FeedbackServiceStub(stubs.channel)
        verdicts = (pb.FEEDBACK_VERDICT_GOOD, pb.FEEDBACK_VERDICT_BAD)
        for unit, verdict in zip(("ann", "bob"), verdicts, strict=True):
            response = await answer(stubs, unit)
            for each in (verdict, pb.FEEDBACK_VERDICT_BAD):
                request = pb.RecordFeedbackRequest(response_id=response.response_id, verdict=each)
                await service.RecordFeedback(request)
        await stubs.live.recorder.flush()
        found = [kept.outcome for kept in stubs.store.outcomes.values() if kept.outcome.metric == FEEDBACK]
        assert sorted(one.value for one in found) == ([0.0, 1.0] if planned else [])
        assert all(one.response_id for one in found)
