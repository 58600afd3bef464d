"""A run reads the feedback that a running server has kept."""

from __future__ import annotations

import asyncio

from router.cli.connect import connected
from router.client import Client
from router.engine.fake import FakeEngine
from router.extensions.improve import state
from router.extensions.improve.run import Improvement, ImproveRequest
from router.extensions.improve.state import Result
from tests.fakes import FakeRegistry, adapter

USERS = 100


def use(address):
    """Every user asks once, and says what the answer should have been."""
    with Client(address) as client:
        for user in range(USERS):
            text = f"shade of thing {user}?"
            answer = client.generate(text, adapter="colours", unit=f"user-{user}", max_tokens=4)
            client.feedback.record(answer.response_id, corrected="red")


async def test_corrections_sent_to_a_server_become_rows(place, commands, start_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    engine = FakeEngine()
    server = await start_server(engine, FakeRegistry(engine, [adapter("colours")]), feedback="texts")
    await asyncio.to_thread(use, server.address)
    request = ImproveRequest(
        "colours",
        place / "adapters",
        place / "recipes",
        place / "work",
        canary=0.0,
    )
    made = Improvement(request, lambda: connected(server.address, 10.0), print)
    run = await asyncio.to_thread(made.run)
    assert run.result is Result.BETTER
    assert run.train + run.held_out == run.read == USERS
    (folder,) = state.runs_of(place / "work", "colours")
    assert "shade of thing" in folder.file(state.TRAIN).read_text()
