"""Disks that are full, or fail: what cannot be kept is not acknowledged, answers go on, nobody mends it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from router.access import audit
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2 import OutcomeStatus
from tests.audited import entries
from tests.faults.clients import begin_experiment, of_unit
from tests.faults.machine import inside, need_mounts, need_trace, on_a_disk_of
from tests.faults.served import MEDICAL, Served, ask, folders, served, unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LOST = "lora_router_audit_lines_lost"


async def record(server: Served, response: str, key: str) -> int:
    outcome = pb.Outcome(response_id=response, metric="points", value=1.0, idempotency_key=key)
    request = pb.RecordOutcomeRequest(outcome=outcome)
    return int((await server.experiments.RecordOutcome(request, timeout=20)).status)


async def taken(server: Served, response: str, key: str) -> int:
    """The status of an outcome; 0 where it was refused with UNAVAILABLE."""
    try:
        return await record(server, response, key)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return 0


async def back(server: Served, response: str, key: str) -> int:
    """Until outcomes are taken again; the status of the one that was."""
    for _ in range(150):
        if status := await taken(server, response, key):
            return status
        await asyncio.sleep(0.2)
    pytest.fail(server.log)


async def prepared(server: Served) -> str:
    """An experiment that runs, and the id of an answer in it."""
    await begin_experiment(server)
    response = (await of_unit(server, 1)).response_id
    await back(server, response, "first")
    await server.choose("1.0.0")
    return str(response)


async def refused_and_served(server: Served, response: str) -> None:
    """Nothing is acknowledged that is not on the disk; the old default stays, and answers go on."""
    assert await unavailable(server.choose("1.1.0")) == "NOT_SAVED"
    assert await server.default() == f"{MEDICAL}/versions/1.0.0"
    assert 0 in [await taken(server, response, f"during-{number}") for number in range(20)]
    assert (await server.inference.Generate(ask(), timeout=20)).text
    assert (await server.page("/readyz"))[0] == 200
    assert await server.metric("lora_router_experiment_store_up") == 0


def fill(file: Path) -> None:
    """Until there is no room left."""
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue


async def test_the_disk_of_all_that_is_kept_is_full(tmp_path: Path) -> None:
    """State folder, outcomes and audit on 4 MiB; when there is room again nobody has to do anything."""
    need_mounts()
    root = folders(tmp_path / "server")
    (root / "state").mkdir()
    before, lines = on_a_disk_of("4m", root / "state"), root / "state/audit.jsonl"
    async with served(root, f"--set=audit={lines}", before=before) as server:
        response = await prepared(server)
        seen = inside(server.process.pid, root / "state")
        fill(seen / "filler")
        await refused_and_served(server, response)
        for _ in range(40):  # the last page of the file has room for some lines
            assert await unavailable(server.choose("1.1.0")) == "NOT_SAVED"
        assert await server.metric(LOST) > 0
        (seen / "filler").unlink()
        assert await back(server, response, "during-0") in (
            OutcomeStatus.OUTCOME_STATUS_COUNTED,
            OutcomeStatus.OUTCOME_STATUS_DUPLICATE,
        )
        await server.choose("1.1.0")
        assert await server.default() == f"{MEDICAL}/versions/1.1.0"
        assert await server.metric("lora_router_experiment_store_up") == 1
        assert audit.verify(seen / "audit.jsonl").problems == ()
        assert list(entries(seen / "audit.jsonl"))[-1]["code"] == "OK"


@asynccontextmanager
async def failing(server: Served, *calls: str) -> AsyncIterator[None]:
    """These system calls of the server fail with EIO."""
    inject = [argument for call in calls for argument in ("-e", f"inject={call}:error=EIO")]
    command = ["strace", "-f", "-q", "-o", "/dev/null", "-p", str(server.process.pid), *inject]
    tracer = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    try:
        await asyncio.sleep(0.5)
        assert tracer.returncode is None
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        await tracer.communicate()


async def test_a_disk_that_fails_when_it_is_waited_for(tmp_path: Path) -> None:
    need_trace()
    root = folders(tmp_path / "server")
    async with served(root, f"--set=audit={root}/audit.jsonl") as server:
        response = await prepared(server)
        async with failing(server, "fsync", "fdatasync"):
            await refused_and_served(server, response)
            assert await server.metric(LOST) > 0
        assert await back(server, response, "afterwards") == OutcomeStatus.OUTCOME_STATUS_COUNTED
        await server.choose("1.1.0")
        assert await server.default() == f"{MEDICAL}/versions/1.1.0"
        assert audit.verify(root / "audit.jsonl").problems == ()


async def test_a_damaged_database_stops_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    root = folders(tmp_path / "server")
    database = root / "x.db"
    url = f"sqlite:///{database}"
    from router.extensions.experiments.store.store import ExperimentStore

    ExperimentStore(url).close()
    damaged = database.read_bytes()[:4096] + b"\xff" * 60_000
    database.write_bytes(damaged)
    async with served(root, "--set", f"database={url}", wait=False) as server:
        assert await asyncio.wait_for(server.process.wait(), 60) == 2
        assert "the file is damaged" in server.log
        assert ".recover" in server.log
    assert database.read_bytes() == damaged
