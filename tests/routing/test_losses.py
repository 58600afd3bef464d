"""What is lost of votes is in the log, at most one line per classifier and minute."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from router.routing.chain import LostVoteLog
from router.types import LostVote, VoteError

SLOW, RAISED = LostVote("slow", VoteError.TIMEOUT), LostVote("slow", VoteError.RAISED)


async def test_the_first_loss_is_logged_at_once_and_later_ones_together(
    caplog: pytest.LogCaptureFixture, kit: Any
) -> None:
    losses = LostVoteLog(seconds=0.2)
    with caplog.at_level(logging.WARNING):
        losses.note(SLOW)
        assert caplog.messages == ["votes of classifier slow were lost: timeout 1"]
        for lost in (SLOW, RAISED, SLOW):
            losses.note(lost)
        assert len(caplog.messages) == 1
        await kit.eventually(lambda: len(caplog.messages) == 2)
        assert caplog.messages[1] == "votes of classifier slow were lost: timeout 2, raised 1"
    losses.close()


async def test_each_classifier_has_its_own_line(caplog: pytest.LogCaptureFixture) -> None:
    losses = LostVoteLog()
    losses.note(SLOW)
    losses.note(LostVote("other", VoteError.BREAKER_OPEN))
    assert caplog.messages == [
        "votes of classifier slow were lost: timeout 1",
        "votes of classifier other were lost: breaker-open 1",
    ]
    losses.close()


async def test_a_quiet_minute_logs_nothing(caplog: pytest.LogCaptureFixture, kit: Any) -> None:
    losses = LostVoteLog(seconds=0.02)
    losses.note(SLOW)
    await kit.eventually(lambda: not losses.waiting)
    assert len(caplog.messages) == 1
    losses.note(SLOW)
    assert len(caplog.messages) == 2
    losses.close()


async def test_what_was_not_logged_yet_is_at_the_close(caplog: pytest.LogCaptureFixture) -> None:
    losses = LostVoteLog()
    losses.note(SLOW)
    losses.note(SLOW)
    losses.close()
    assert caplog.messages[1:] == ["votes of classifier slow were lost: timeout 1"]
    await asyncio.sleep(0)
    assert not losses.waiting
