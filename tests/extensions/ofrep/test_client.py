"""OpenFeature's SDK with its OFREP provider, unchanged, in an environment of its own."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.extensions.kserve.test_clients import environment
from tests.security.worlds import answered, begun, world
from tests.server.helpers import Connect, Start

pytestmark = [pytest.mark.long, pytest.mark.interop, pytest.mark.timeout(900)]


async def test_the_provider_unchanged(start_server: Start, connect: Connect, tmp_path: Path) -> None:
    python = await asyncio.to_thread(environment, tmp_path / "env", "openfeature-provider-ofrep")
    async with world(tmp_path, start_server, connect, http_listen="127.0.0.1:0") as at:
        await begun(at, "acme-half", at.clients.mine, route="base", enrolment=1e-9)
        arm = (await answered(at, at.clients.mine, "a medical question", "anna")).decision.arm
        token = at.clients.mine[0][1].removeprefix("Bearer ")
        script = Path(__file__).with_name("openfeature_client.py")
        command = (python, script, at.app.http_address, token, "anna", arm)
        child = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=tmp_path)
        out, err = await child.communicate()
        assert (child.returncode, out.decode().splitlines()[-1:]) == (0, ["OK"]), err.decode()
