"""Fixtures of tests that run commands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import typer.main

from router.cli.main import app, run
from router.config import Settings
from router.registry.registry import RegistryOptions
from tests.extensions.experiments.scripted import scripted_server


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


def all_commands() -> typer.core.TyperGroup:
    """The root of the command line with the commands of built-in plugins."""
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    root.list_commands(typer.Context(root))
    return root


def without_network(command: list[str]) -> list[str] | None:
    """The same where only loopback exists; None if this machine has no network namespaces for it."""
    alone, up = ["unshare", "--map-root-user", "--net"], "ip link set lo up"
    if shutil.which("unshare") is None or subprocess.run([*alone, "sh", "-c", up], check=False).returncode:
        return None
    return [*alone, "sh", "-c", f'{up}; exec "$@"', "sh", *command]


@pytest.fixture
def cli(capsys) -> Callable[..., Done]:
    """Run `lora-router ARGUMENTS` in this process."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def remote(monkeypatch):
    """A scripted server that the commands talk to: `.inference`, `.adapters`, `.experiments`, `.target`."""
    with scripted_server() as server:
        monkeypatch.setenv("LORA_ROUTER_SERVER", server.target)
        yield server


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, with no settings from the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("LISTEN", "SERVER", "ADAPTERS_DIR", "PLUGINS_DIR", "TRACEBACK"):
        monkeypatch.delenv(f"LORA_ROUTER_{name}", raising=False)
    return tmp_path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is bad, or that changes, is waited for only for a moment."""
    made = RegistryOptions.of

    def of(settings: Settings) -> RegistryOptions:
        return replace(made(settings), grace_seconds=0.2)

    monkeypatch.setattr(RegistryOptions, "of", of)
    monkeypatch.setattr("router.registry.loading.CHANGING_SECONDS", 0.3)
