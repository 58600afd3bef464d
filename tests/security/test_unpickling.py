"""Nothing here unpickles or evaluates: not in the code, and not what is sent to any open socket."""

from __future__ import annotations

import ast
import asyncio
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from tests.security.code import ROUTER, trees
from tests.security.helpers import ROWS
from tests.server.helpers import Connect, Start, ask, failure

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {("torch", "load"), ("numpy", "load"), ("np", "load"), ("yaml", "load"), ("yaml", "unsafe_load")}
ALLOWED = {
    ("extensions/training/run.py", "torch.load"),  # the state of one's own interrupted run, numbers only
    (
        "extensions/training/conversion.py",
        "torch.load",
    ),  # `adapters convert`, which a person runs: tensors only
    ("extensions/training/conversion.py", "pickle"),  # the exception that torch raises for anything else
}


def suspects(tree: ast.AST) -> Iterator[str]:
    """Names of what unpickles or evaluates."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from (f"{of}.{name}" for of, name in LOADERS if (node.value.id, node.attr) == (of, name))


def test_no_code_of_the_server_unpickles_or_evaluates() -> None:
    found = {(file, name) for file, tree in trees().items() for name in suspects(tree)}
    assert found == ALLOWED
    for file in ("extensions/training/run.py", "extensions/training/conversion.py"):
        text = (ROUTER / file).read_text()
        assert text.count("torch.load(") == text.count("weights_only=True") == 1, file
    assert "pickle.load" not in (ROUTER / "extensions/training/conversion.py").read_text()


@pytest.mark.parametrize(
    "code", ["import pickle", "from dill import loads", "eval(x)", "import torch\ntorch.load(f)", "exec(y)"]
)
def test_the_scan_sees(code: str) -> None:
    assert list(suspects(ast.parse(code)))


class Bomb:
    """Unpickling it makes the folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_the_bomb_goes_off_where_something_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


async def thrown(address: str, data: bytes) -> None:
    """Bytes to a socket, as they are; waits until the other side has had enough, or some time."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    writer.write_eof()
    try:
        async with asyncio.timeout(0.5):
            await reader.read()
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()


async def code_of(channel: grpc.aio.Channel, method: str, bombs: Sequence[bytes]) -> grpc.StatusCode:
    """What the server says; a call that it refused before the message was out is INTERNAL to the client."""
    while True:
        call = channel.stream_stream(method)(
            iter(bombs[-1:]), timeout=1, metadata=(("x-bomb-bin", bombs[2]),)
        )
        error = await failure(call)
        if error.details() != "Internal error from Core":
            return error.code()


async def test_a_pickle_sent_to_every_socket_and_method_leaves_no_mark(
    start_server: Start, connect: Connect, tmp_path: Path
) -> None:
    server = await start_server(metrics_listen="127.0.0.1:0")
    stubs, marker = connect(server), tmp_path / "marker"
    bombs = [pickle.dumps(Bomb(marker), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for bomb in bombs:
        for address in (server.address, server.metrics_address):
            await thrown(address, bomb)
            await thrown(
                address,
                f"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
                + bomb,
            )
    for method in sorted(ROWS):
        assert await code_of(stubs.channel, method, bombs) is not grpc.StatusCode.INTERNAL, method
    assert not marker.exists()
    assert (await stubs.inference.Generate(ask())).text
