"""What callers are told while the database of experiments is down: not where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.errors import StoreDown
from router.experiments.store.sql_store import SqlStore
from router.v1 import experiments_pb2 as pb
from tests.experiments.service.lab import create, experimenting
from tests.server.helpers import Connect, Start, details, failure


def _broken(store: SqlStore, file: Path) -> None:
    """A folder where the database was."""
    store._engine.dispose()
    for left in file.parent.glob(f"{file.name}*"):
        left.unlink()
    file.mkdir()


async def test_a_store_that_is_down_does_not_tell_where_it_is(
    tmp_path: Path,
    fakes: SimpleNamespace,
    start_server: Start,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "trials.db"
    store = await asyncio.to_thread(SqlStore, f"sqlite:///{file}")
    async with experimenting(store, fakes, start_server, connect) as lab:
        await asyncio.to_thread(_broken, store, file)
        vote = pb.Outcome(response_id="x", metric="solved", value=1)
        calls = (
            lab.experiments.CreateExperiment(create()),
            lab.experiments.ListExperiments(pb.ListExperimentsRequest()),
            lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=vote)),
        )
        for call in calls:
            seen = await failure(call)
            assert details(seen)["ErrorInfo"].reason == "STORE_DOWN"
            assert seen.details() == StoreDown.told
            assert "trials.db" not in repr((seen, details(seen)))
    kept = [r.fields["text"] for r in caplog.records if r.message == "not told in full"]
    assert len(kept) == len(calls)
    assert any("trials.db" in text for text in kept)
