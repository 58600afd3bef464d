from __future__ import annotations

import re

import pytest

from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.listen import split_address
from tests.server.helpers import Start


@pytest.mark.parametrize(
    ("listen", "parts"),
    [("127.0.0.1:50051", ("127.0.0.1", 50051)), ("[::1]:0", ("[::1]", 0)), ("localhost:1", ("localhost", 1))],
)
def test_addresses(listen: str, parts: tuple[str, int]) -> None:
    assert split_address(listen, "listen") == parts


@pytest.mark.parametrize(
    "listen", ["", "50051", ":50051", "::1:50051", "[::1:1", "h:", "h:x", "h:70000", "h:-1", "h:²"]
)
def test_bad_addresses_are_named(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen must be HOST:PORT"):
        split_address(listen, "listen")


async def test_the_port_is_not_shared(server: ServerApp, start_server: Start) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {re.escape(server.address)}.*another server"):
        await start_server(listen=server.address)
