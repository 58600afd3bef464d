"""Small plugin files, and a server with the fake engine that has them, for tests of hooks."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from router import testing
from router.cli.plugins import host_of
from router.cli.settings import load_settings
from router.client import AsyncClient
from router.plugins import PluginHost
from router.server.app import ServerApp
from router.testing import Served

ROOT = Path(__file__).parents[1]
Write = Callable[..., Path]
HEAD = "from router import hookimpl\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write plugins/NAME with a body below `from router import hookimpl`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def write(name: str, body: str) -> Path:
        path = tmp_path / "plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(body))
        return path

    return write


def loaded(**settings: Any) -> PluginHost:
    """The plugins of a server in the current folder."""
    found = load_settings({"plugins_dir": (Path("plugins"),), **settings})
    host = host_of(found)
    host.refresh()
    return host


def status_of(host: PluginHost, name: str) -> Any:
    return next(status for status in host.status() if status.name == name)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Served, AsyncClient]]:
    """A server in the current folder, with its plugins; a client of it."""
    async with testing.serving(gate="off", **settings) as served:
        yield served, served.client


async def got(app: ServerApp, path: str, **headers: str) -> Any:
    async with httpx2.AsyncClient(base_url=f"http://{app.http_address}") as client:
        return await client.get(path, headers=headers)


CHECK = """
@hookimpl
def register_checks(register):
    register(lambda: {})
"""


def check_of(host: PluginHost, name: str) -> Any:
    (check,) = next(loaded for loaded, plugin in host.running().items() if plugin.name == name).checks
    return check()
