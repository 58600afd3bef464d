"""A sidecar says who calls: on its own listener alone, and nobody else is believed."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.access.clients import hash_of, new_token
from router.cli.serve import check_reach
from router.config import Settings
from router.errors import ConfigError
from router.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2_grpc
from tests.extensions.oidc.issuing import Issuing
from tests.security.helpers import bearer
from tests.server.helpers import Start, ask, details, failure, long_stream, until

NAME = "spiffe://cluster.local/ns/shop/sa/billing"
TRUE = f'By=spiffe://cluster.local/ns/llm/sa/router;Hash=0f;Subject="CN=billing";URI={NAME}'


def forwarded(*headers: str) -> tuple[tuple[str, str], ...]:
    return tuple(("x-forwarded-client-cert", header) for header in headers)


def clients(folder: Path, more: str = "") -> SimpleNamespace:
    """A file with two clients by name, the first with `more`, and one by token."""
    token, path = new_token("own"), folder / "clients.toml"
    path.write_text(
        f'[[client]]\nid = "billing"\ncert = "{NAME}"\nroles = ["infer", "observe"]\n{more}\n'
        f'[[client]]\nid = "dns"\ncert = "shop.svc"\nroles = ["infer"]\n'
        f'[[client]]\nid = "own"\ntoken_sha256 = ["{hash_of(token)}"]\nroles = ["infer", "admin"]\n'
    )
    return SimpleNamespace(path=path, own=token)


async def outcome(address: str, metadata: Any = ()) -> str:
    """How a call ends there."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            await stub.Generate(ask(), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return str(details(error)["ErrorInfo"].reason)
    return "OK"


@pytest.fixture(params=["127.0.0.1:0", "unix"])
async def beside(request: pytest.FixtureRequest, start_server: Start, tmp_path: Path) -> SimpleNamespace:
    """A server with a sidecar's listener, by TCP and by socket."""
    listen = f"unix:{tmp_path}/sidecar.sock" if request.param == "unix" else request.param
    file = clients(tmp_path)
    server = await start_server(clients=file.path, sidecar_listen=listen)
    return SimpleNamespace(server=server, address=server.sidecar_address, own=file.own, path=file.path)


async def test_the_nearest_proxy_says_who_calls(
    beside: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router")
    assert await outcome(beside.address, forwarded(TRUE)) == "OK"
    (line,) = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert line["client"] == "billing"
    assert await outcome(beside.address, forwarded("Hash=0f;DNS=shop.svc")) == "OK"
    assert await outcome(beside.address, forwarded(f"URI=spiffe://evil,{TRUE}")) == "OK"


NO_NAMES_OF_CLIENTS = (
    ((), "TOKEN_MISSING"),
    (('Hash=0f;Subject="CN=billing"',), "TOKEN_MISSING"),  # a certificate without names
    (("URI=spiffe://evil",), "TOKEN_INVALID"),
    ((f"{TRUE},URI=spiffe://evil",), "TOKEN_INVALID"),  # what came from farther away is no proof
    ((f"{TRUE},Hash=0f",), "TOKEN_MISSING"),
    ((f"URI={NAME}/x",), "TOKEN_INVALID"),
    ((f"URI={NAME.upper()}",), "TOKEN_INVALID"),
    ((f"By={NAME};URI=x",), "TOKEN_INVALID"),
    ((f"URI={NAME};DNS=shop.svc",), "TOKEN_INVALID"),  # two clients
    ((TRUE, TRUE), "TOKEN_INVALID"),
    (("",), "TOKEN_INVALID"),
    (("nonsense",), "TOKEN_INVALID"),
    ((f'Subject="CN=x;URI={NAME}',), "TOKEN_INVALID"),
    ((f'{TRUE}"',), "TOKEN_INVALID"),
)


async def test_what_is_not_a_name_of_a_client(beside: SimpleNamespace) -> None:
    for headers, reason in NO_NAMES_OF_CLIENTS:
        assert await outcome(beside.address, forwarded(*headers)) == reason, headers


async def test_a_token_works_there_as_everywhere(beside: SimpleNamespace) -> None:
    assert await outcome(beside.address, bearer(beside.own)) == "OK"
    assert await outcome(beside.address, (*bearer(beside.own), *forwarded("nonsense"))) == "OK"
    assert await outcome(beside.address, (*bearer("lrk_own_x"), *forwarded(TRUE))) == "TOKEN_INVALID"
    assert await outcome(beside.address, (*bearer("a.b.c"), *forwarded(TRUE))) == "TOKEN_INVALID"
    assert await outcome(beside.address, (("authorization", ""), *forwarded(TRUE))) == "TOKEN_INVALID"


async def test_nobody_is_believed_elsewhere(beside: SimpleNamespace) -> None:
    assert await outcome(beside.server.address, forwarded(TRUE)) == "TOKEN_MISSING"
    assert await outcome(beside.server.address, (*bearer(beside.own), *forwarded(TRUE))) == "OK"


async def test_the_admin_socket_believes_no_header_and_the_sidecars_is_none(
    start_server: Start, tmp_path: Path
) -> None:
    file = clients(tmp_path)
    admin, sidecar = (f"unix:{tmp_path}/{name}.sock" for name in ("admin", "sidecar"))
    await start_server(clients=file.path, admin_listen=admin, sidecar_listen=sidecar)
    assert stat.S_IMODE((tmp_path / "sidecar.sock").stat().st_mode) == 0o600
    load = adapters_pb2.LoadAdapterRequest(name="adapters/medical")
    async with grpc.aio.insecure_channel(admin) as channel:
        adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        assert await adapters.LoadAdapter(load, metadata=forwarded("nonsense"))
    async with grpc.aio.insecure_channel(sidecar) as channel:
        adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        for metadata, reason in (
            (forwarded(TRUE), "ROLE_MISSING"),
            (bearer(file.own), "ADMIN_LISTENER"),
            ((), "TOKEN_MISSING"),
        ):
            refused = await failure(adapters.LoadAdapter(load, metadata=metadata))
            assert details(refused)["ErrorInfo"].reason == reason


async def test_every_service_is_there_and_a_quota_counts_both_ways(
    start_server: Start, tmp_path: Path
) -> None:
    token = new_token("billing")
    file = clients(tmp_path, f'token_sha256 = ["{hash_of(token)}"]\nmax_concurrent = 1')
    server = await start_server(clients=file.path, sidecar_listen="127.0.0.1:0")
    server.engine.step_seconds = 0.02  # type: ignore[attr-defined]
    async with grpc.aio.insecure_channel(server.sidecar_address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        adapters = adapters_pb2_grpc.AdapterServiceStub(channel)
        listed = await adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(), metadata=forwarded(TRUE))
        assert not listed.adapters  # it names none in the file
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        held = inference.StreamGenerate(long_stream(), metadata=forwarded(TRUE))
        await anext(aiter(held))
        assert await outcome(server.address, bearer(token)) == "QUOTA"
        held.cancel()


async def test_it_drains_with_the_others(start_server: Start, tmp_path: Path) -> None:
    server = await start_server(clients=clients(tmp_path).path, sidecar_listen="127.0.0.1:0")
    server.engine.step_seconds = 0.01  # type: ignore[attr-defined]
    async with grpc.aio.insecure_channel(server.sidecar_address) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        call = inference.StreamGenerate(long_stream(30), metadata=forwarded(TRUE))
        await anext(aiter(call))
        await server.stop()
        assert [message async for message in call][-1].HasField("finished")
    host, _, port = server.sidecar_address.rpartition(":")
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect((host, int(port)))


async def test_a_client_that_is_taken_out_is_ended(beside: SimpleNamespace) -> None:
    beside.server.engine.step_seconds = 0.02
    async with grpc.aio.insecure_channel(beside.address) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        call = inference.StreamGenerate(long_stream(2000), metadata=forwarded(TRUE))
        await anext(aiter(call))
        beside.path.write_text("")
        assert details(await failure(call))["ErrorInfo"].reason == "TOKEN_INVALID"
    await until(lambda: beside.server.admission.in_flight == 0)


async def test_a_token_of_an_issuer_works_there(start_server: Start, tmp_path: Path) -> None:
    issuing, keys = Issuing(), tmp_path / "jwks.json"
    keys.write_bytes(issuing.document())
    (tmp_path / "clients.toml").write_text(issuing.table(jwks=str(keys)) + issuing.client())
    server = await start_server(clients=tmp_path / "clients.toml", sidecar_listen="127.0.0.1:0")
    assert await outcome(server.sidecar_address, bearer(issuing.token())) == "OK"
    assert await outcome(server.sidecar_address, bearer(issuing.token(sub="x"))) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1", "router.svc:1", ":1", "1", "127.evil.example:1"]
)
async def test_an_address_that_others_reach_is_refused(
    start_server: Start, tmp_path: Path, listen: str
) -> None:
    path = clients(tmp_path).path
    with pytest.raises(ConfigError, match="sidecar_listen must be"):
        await start_server(clients=path, sidecar_listen=listen)
    with pytest.raises(ConfigError, match="sidecar_listen must be"):
        check_reach(Settings(clients=path, sidecar_listen=listen), insecure=True)


@pytest.mark.parametrize("listen", ["unix:relative", "unix:/" + "x" * 107])
async def test_a_socket_that_cannot_be_is_refused(start_server: Start, tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match="sidecar_listen must be unix:/PATH"):
        await start_server(clients=clients(tmp_path).path, sidecar_listen=listen)


async def test_an_address_in_use_is_told_with_its_setting(start_server: Start, tmp_path: Path) -> None:
    server = await start_server(clients=clients(tmp_path).path)
    with pytest.raises(ConfigError, match="Choose another with --set sidecar_listen=HOST:PORT"):
        await start_server(clients=clients(tmp_path).path, sidecar_listen=server.address)


def test_without_clients_there_is_nobody_to_name() -> None:
    with pytest.raises(ValueError, match="sidecar_listen needs clients"):
        Settings(sidecar_listen="127.0.0.1:0")
