"""Administration by a socket that only the server's own user can open."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from router.client import AsyncClient, ClientError
from router.errors import ConfigError
from tests.security.helpers import write_clients
from tests.server.helpers import Start


async def reason(target: str, **secured: str) -> str:
    """Why `adapters.load` is refused there; '' if it is not."""
    async with AsyncClient(target, timeout=5, **secured) as client:  # type: ignore[arg-type]
        try:
            await client.adapters.load("medical")
        except ClientError as error:
            return error.reason or error.code
    return ""


async def test_admin_methods_are_answered_there_only(start_server: Start, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/admin.sock"
    server = await start_server(admin_listen=socket)
    assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
    assert await reason(socket) == ""
    assert await reason(server.address) == "ADMIN_LISTENER"
    async with AsyncClient(server.address, timeout=5) as client:
        assert await client.route("hi")
        assert await client.adapters.list()


async def test_with_clients_the_socket_needs_no_token_and_takes_one(
    start_server: Start, tmp_path: Path
) -> None:
    clients, socket = write_clients(tmp_path), f"unix:{tmp_path}/admin.sock"
    server = await start_server(admin_listen=socket, clients=clients.path)
    assert await reason(socket) == ""
    assert await reason(socket, token=clients.infer) == "ROLE_MISSING"
    assert await reason(socket, token="lrk_infer_x") == "TOKEN_INVALID"
    assert await reason(socket, token=clients.admin) == ""
    assert await reason(server.address, token=clients.admin) == "ADMIN_LISTENER"
    assert await reason(server.address, token=clients.infer) == "ROLE_MISSING"
    assert await reason(server.address) == "TOKEN_MISSING"


async def test_tls_is_for_the_network(start_server: Start, tmp_path: Path) -> None:
    """`LORA_ROUTER_TLS_CA` in the environment is no hindrance."""
    await start_server(admin_listen=f"unix:{tmp_path}/admin.sock")
    assert await reason(f"unix:{tmp_path}/admin.sock", tls_ca="system") == ""


async def test_what_is_done_there_is_logged_as_local(
    start_server: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router")
    await start_server(admin_listen=f"unix:{tmp_path}/admin.sock")
    await reason(f"unix:{tmp_path}/admin.sock")
    (line,) = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert (line["client"], line["method"]) == ("local", "LoadAdapter")


async def test_a_socket_in_use_is_not_taken_away(start_server: Start, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/admin.sock"
    await start_server(admin_listen=socket)
    with pytest.raises(ConfigError, match="another server does"):
        await start_server(admin_listen=socket)
    assert await reason(socket) == ""


async def test_a_socket_left_behind_is_used_again(start_server: Start, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/admin.sock"
    server = await start_server(admin_listen=socket)
    await server.stop()
    await start_server(admin_listen=socket)
    assert await reason(socket) == ""


@pytest.mark.parametrize("bad", ["127.0.0.1:1", "unix:relative", "unix:/" + "x" * 107, "/run/x.sock"])
async def test_an_address_that_is_no_socket_is_refused(start_server: Start, bad: str) -> None:
    with pytest.raises(ConfigError, match="admin_listen must be unix:/PATH"):
        await start_server(admin_listen=bad)


async def test_a_folder_that_is_not_there_is_told(start_server: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is its folder there"):
        await start_server(admin_listen=f"unix:{tmp_path}/none/admin.sock")
