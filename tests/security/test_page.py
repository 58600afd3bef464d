"""The steps of docs/security.md, as they stand there, with a server that is real in all but its base."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addresses import free_address
from tests.registry.tiny import write_adapter

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").split("\n## ")[1]
PREPARE, CALL, TAKE_OUT = re.findall(r"^```sh\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
WAIT = 120.0
REVOKED = 1.0  # seconds, as the page says

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the page makes a certificate with openssl"),
]


class Shell:
    """One shell that lives through the page; a server that it starts goes on beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        address, adapters = free_address(), folder / "adapters"
        write_adapter(adapters / "medical")
        self.environment = os.environ | {
            "PATH": path,
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
            "LORA_ROUTER_ADAPTERS_DIR": str(adapters),
            "LORA_ROUTER_GATE": "off",
            "LORA_ROUTER_LOAD_PLUGINS": "",
            "LORA_ROUTER_PLUGINS_DIR": str(ROOT / "plugins"),
            "LORA_ROUTER_LISTEN": address,
            "LORA_ROUTER_SERVER": address,
            "LORA_ROUTER_METRICS_LISTEN": "",
        }

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """The lines in one shell that stops at the first failure."""
        command = ["bash", "-euc", text]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def done(self, text: str) -> str:
        """What they said; they must have worked."""
        ran = self.run(text)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    prepare, serve = PREPARE.split("lora-router serve")
    made.done(f'{prepare}\nprintf "%s %s" "$TOKEN" "$ADMIN" > tokens')
    tokens = (tmp_path / "tokens").read_text().split()
    made.environment.update(zip(("TOKEN", "ADMIN"), tokens, strict=True))
    with (tmp_path / "log").open("w") as log:
        command = ["bash", "-euc", f'exec "{sys.executable}" -m tests.faults.serve serve{serve}']
        server = subprocess.Popen(command, cwd=tmp_path, env=made.environment, stdout=log, stderr=log)
    end = time.monotonic() + WAIT
    while "is ready" not in (said := (tmp_path / "log").read_text()):
        assert server.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.3)
    yield made
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0


def test_the_steps_of_the_page(shell: Shell) -> None:
    said = shell.done(CALL)
    assert "medical" in said
    assert re.search(r"^TOKEN=", PREPARE, re.MULTILINE)
    revoke, again, *audit = TAKE_OUT.splitlines()
    shell.done(revoke)
    time.sleep(REVOKED)
    refused = shell.run(again)
    assert refused.returncode == 1
    assert "not valid here" in refused.stderr
    show, verify = (shell.done(line) for line in audit)
    acted = [line for line in show.splitlines() if "UnloadAdapter" in line]
    assert [word for word in ("ops", "medical", '"OK"') if word not in acted[0]] == [], show
    assert "StreamGenerate" in show
    assert "TOKEN_INVALID" in show
    assert "whole: 2 lines" in verify
