"""The database of experiments is deleted or replaced under a server, and put back."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from router.experiments.runtime import STORE_REPLACED
from router.experiments.store.store import ExperimentStore
from router.v1.experiments_pb2 import OutcomeStatus
from tests.faults.served import Served, ask, folders, readiness, served, unavailable, until
from tests.faults.test_disk import back, prepared, record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def noticed(server: Served, response: str) -> None:
    """Within 10 s, without any outcome; then none is taken, and answers go on."""

    async def degraded() -> bool:
        return STORE_REPLACED in (await readiness(server))["degraded"]

    await until(degraded, 10)
    assert await unavailable(record(server, response, "during")) == "STORE_DOWN"
    assert (await server.inference.Generate(ask(), timeout=20)).text
    assert (await server.page("/readyz"))[0] == 200


def copied(path: Path, to: Path) -> Path:
    with sqlite3.connect(path) as source, sqlite3.connect(to) as target:
        source.backup(target)
    return to


async def test_a_database_is_deleted_replaced_and_put_back(tmp_path: Path) -> None:
    root, path = folders(tmp_path / "server"), tmp_path / "experiments.db"
    away, other, url = tmp_path / "away.db", tmp_path / "other.db", f"sqlite:///{path}"
    async with served(root, "--set", f"experiments={url}") as server:
        response = await prepared(server)
        older = copied(path, tmp_path / "older.db")
        path.rename(away)
        await noticed(server, response)
        away.rename(path)
        assert await back(server, response, "deleted") == OutcomeStatus.OUTCOME_STATUS_COUNTED

        ExperimentStore(f"sqlite:///{other}").close()
        path.rename(away)
        os.replace(other, path)
        await noticed(server, response)
        assert "is another database now: put back the one that was here" in server.log
        away.rename(path)
        assert await back(server, response, "other") == OutcomeStatus.OUTCOME_STATUS_COUNTED

        os.replace(older, path)
        await noticed(server, response)
        assert "is an older copy now, without what was acknowledged since" in server.log
        await server.end()
    async with served(root, "--set", f"experiments={url}") as server:
        assert await back(server, response, "deleted") == OutcomeStatus.OUTCOME_STATUS_COUNTED
        assert (await readiness(server))["degraded"] == []
