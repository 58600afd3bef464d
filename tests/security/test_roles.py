"""Who may call what: every method has a role, and all others are refused before the body is read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from router.access.clients import Role
from router.v1 import adapters_pb2, experiments_pb2, feedback_pb2, fleet_pb2, inference_pb2
from tests.security.helpers import ROWS, bearer, write_clients
from tests.server.helpers import Connect, Start, details, failure

MODULES = (
    inference_pb2,
    adapters_pb2,
    fleet_pb2,
    experiments_pb2,
    feedback_pb2,
    health_pb2,
    reflection_pb2,
)


def every_method() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_every_method_is_in_the_table_and_nothing_else() -> None:
    assert set(ROWS) == every_method()


def test_only_health_is_open() -> None:
    assert {m.rpartition("/")[0] for m, row in ROWS.items() if row.role is Role.OPEN} == {
        "/grpc.health.v1.Health"
    }


async def refusal(stubs: SimpleNamespace, method: str, **options: object) -> str:
    """The reason of the refusal; '' where the call came further."""
    await stubs.channel.channel_ready()  # the time is for the refusal alone
    call = stubs.channel.stream_stream(method)(timeout=1, **options)  # no body is ever sent
    error = await failure(call)
    # Here are no experiments and no replicas.
    if error.code().name in ("DEADLINE_EXCEEDED", "CANCELLED", "FAILED_PRECONDITION"):
        return ""
    reason = str(details(error)["ErrorInfo"].reason)
    return (
        "" if reason == "QUEUE_FULL" else reason
    )  # its read slot was reclaimed: the role was checked before


async def refusals(stubs: SimpleNamespace, **options: object) -> dict[str, str]:
    """The same of every method, all at once."""
    found = await asyncio.gather(*(refusal(stubs, method, **options) for method in ROWS))
    return dict(zip(ROWS, found, strict=True))


@pytest.mark.parametrize("role", ["infer", "observe", "admin"])
async def test_every_role_meets_every_method(
    start_server: Start, connect: Connect, tmp_path: Path, role: str
) -> None:
    clients = write_clients(tmp_path)
    stubs = connect(await start_server(clients=clients.path))
    metadata = bearer(getattr(clients, role))
    got = await refusals(stubs, metadata=metadata)
    assert got == {
        method: "" if row.role.value in (role, "open") else "ROLE_MISSING" for method, row in ROWS.items()
    }


async def test_without_a_token_only_health_answers(
    start_server: Start, connect: Connect, tmp_path: Path
) -> None:
    stubs = connect(await start_server(clients=write_clients(tmp_path).path))
    got = await refusals(stubs)
    assert got == {method: "" if row.role is Role.OPEN else "TOKEN_MISSING" for method, row in ROWS.items()}
