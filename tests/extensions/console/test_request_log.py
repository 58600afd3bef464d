"""The latest requests in memory: bounded, without texts, and counts of the last minutes."""

from __future__ import annotations

from typing import Any

import pytest

from router.access.clients import ANYONE, Client
from router.extensions.console.request_log import LATELY, MOST, MOST_BYTES, Outcome, RequestLog, outcome_of
from router.server.policy import ROWS
from router.types import AdapterRef, Decision, Reason, Visible, Vote
from tests.server.helpers import call_of

GENERATE = "/router.v1.InferenceService/Generate"


def ended(log: RequestLog, status: str = "OK", reason: str = "", **more: Any) -> None:
    call = call_of(GENERATE, ROWS[GENERATE], peer="ipv4:127.0.0.1:5")
    for name, value in more.items():
        setattr(call.answer if hasattr(call.answer, name) else call, name, value)
    log.ended(call, status, reason)


def test_refused_and_failed_ones_come_first_and_answers_push_none_out() -> None:
    log = RequestLog()
    ended(log, "INTERNAL")
    for _ in range(MOST + 5):
        ended(log)
    ended(log, "NOT_FOUND", "ADAPTER_NOT_FOUND")
    found = log.seen_by(ANYONE)
    assert [one.code for one in found[:3]] == ["ADAPTER_NOT_FOUND", "INTERNAL", "OK"]
    assert len(found) == MOST + 2
    assert found[2].number > found[3].number


def test_a_vote_of_many_adapters_takes_no_more_memory_than_of_few() -> None:
    log = RequestLog()
    votes = tuple(
        Vote(f"c{i}", {f"a{j}": j / 5000 for j in range(5000)}, evidence="x" * 9000) for i in range(9)
    )
    for _ in range(MOST):
        ended(log, decision=Decision(AdapterRef("a1", "1"), Reason.CLASSIFIED), votes=votes)
    kept = log.seen_by(ANYONE)
    assert sum(one.size for one in kept) <= MOST_BYTES
    assert len(kept) < MOST
    decision = kept[0].decision
    assert decision is not None
    assert list(decision.votes[0].scores) == ["a4999", "a4998", "a4997"]
    assert len(decision.votes[0].evidence) == 200


def test_a_client_with_some_adapters_sees_its_own() -> None:
    log = RequestLog()
    anna = Client("anna", adapters=Visible(("legal",)))
    ended(log, client=anna)
    ended(log, client=Client("ivan"))
    ended(log, "UNAUTHENTICATED", "TOKEN_MISSING")
    assert [one.client for one in log.seen_by(anna)] == ["anna"]
    assert {one.client for one in log.seen_by(ANYONE)} == {"anna", "ivan", "127.0.0.1"}


def test_counts_are_of_the_last_minutes() -> None:
    now = [0.0]
    log = RequestLog(lambda: now[0])
    ended(log)
    now[0] = 60.0 * (LATELY - 1)
    ended(log, "INTERNAL", "TypeError")
    assert log.lately() == {(Outcome.ANSWERED, "OK"): 1, (Outcome.FAILED, "TypeError"): 1}
    now[0] = 60.0 * LATELY
    assert log.lately() == {(Outcome.FAILED, "TypeError"): 1}


@pytest.mark.parametrize(
    ("code", "reason", "outcome"),
    [
        ("UNAVAILABLE", "ENGINE_FAILED", "failed"),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "failed"),
        ("UNAVAILABLE", "DRAINING", "refused"),
        ("INVALID_ARGUMENT", "INVALID_REQUEST", "refused"),
        ("CANCELLED", "", "cancelled"),
    ],
)
def test_how_a_request_ended(code: str, reason: str, outcome: str) -> None:
    assert outcome_of(code, reason) == outcome
