from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from router.config import Settings
from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.listen import server_options, split_address
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


def test_every_option_is_one_that_grpc_knows() -> None:
    """An unknown option is ignored in silence; the names stand in the library as plain bytes."""
    library = Path(cygrpc.__file__).read_bytes()
    unknown = [name for name, _ in server_options(Settings()) if name.encode() not in library]
    assert not unknown
