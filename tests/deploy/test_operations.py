"""docs/operations.md and docs/deploy.md against the code: commands run or exist, what they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.config import Settings
from router.extensions.sharing.sharing import EdgesCollector
from router.server.metrics import ServerMetrics
from tests.addresses import free_address
from tests.cli.tiny import write_adapter
from tests.commands import all_commands, cli, own_folder

__all__ = ["cli", "own_folder"]

ROOT = Path(__file__).parents[2]
PAGE = "".join((ROOT / "docs" / name).read_text() for name in ("operations.md", "deploy.md"))
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


def starting_with(word: str) -> list[str]:
    return [line for line in COMMANDS if line.startswith(f"{word} ")]


def test_every_command_is_looked_after_here():
    known = ("lora-router", "curl", "podman", "kubectl", "make", "deploy/build.sh", "deploy/smoke.sh")
    assert [line for line in COMMANDS if line.split()[0] not in known] == []


@pytest.mark.parametrize("line", starting_with("lora-router"))
def test_commands_of_ours_exist_with_their_options(line):
    words = [word for word in shlex.split(line)[1:] if word != ">"]
    command = all_commands()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{line}: {words[:1]}"
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_listing_digests_runs_as_it_is_written(cli, own_folder):
    write_adapter(own_folder / "adapters" / "medical")
    for line in starting_with("lora-router"):
        words = shlex.split(line)[1:]
        if words[:2] == ["adapters", "digest"]:
            done = cli(*(words[: words.index(">")] if ">" in words else words))
            assert done.code == 0, done.err
            if ">" in words:
                Path(words[-1]).write_text(done.out)
    assert (own_folder / "adapters.lock").read_text().startswith("sha256:")


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process on the fake engine, and its HTTP address."""
    address = free_address()
    command = [sys.executable, "-m", "tests.server.serve_fake", "--metrics", address]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        yield child, address
        child.kill()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_probes_and_sigterm_as_they_are_written(server):
    child, address = server
    answers = {}
    for line in starting_with("curl"):
        asked = line.replace("127.0.0.1:9464", address)
        answers[line.rpartition("/")[2]] = subprocess.run(
            shlex.split(asked), capture_output=True, text=True, check=True
        ).stdout
    assert json.loads(answers["healthz"])["status"] == json.loads(answers["readyz"])["status"] == "ok"
    assert "lora_router_requests_waiting 0.0" in answers["metrics"]
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0


def test_scripts_and_manifests_that_are_named_are_there():
    for line in (*starting_with("deploy/build.sh"), *starting_with("deploy/smoke.sh")):
        assert os.access(ROOT / line.split()[0], os.X_OK)
    folders = [ROOT / line.split()[-1] for line in starting_with("kubectl apply -k")]
    assert [folder.name for folder in folders] == ["base"]
    assert all((folder / "kustomization.yaml").is_file() for folder in folders)
    files = re.findall(r"^\| `([a-z]+\.yaml)`", PAGE, re.MULTILINE)
    assert files
    assert [name for name in files if not any((folder / name).is_file() for folder in folders)] == []


def test_targets_that_are_named_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in starting_with("make")}
    assert targets >= {"soak", "answers"}
    assert [name for name in targets if f"\n{name}: " not in makefile] == []


def test_metrics_and_settings_that_are_named_exist():
    edges = EdgesCollector(SimpleNamespace(problem="", edges=1))
    found = [*ServerMetrics().registry.collect(), *edges.collect()]
    known = {f"{m.name}_total" if m.type == "counter" else m.name for m in found}
    named = set(re.findall(r"`((?:lora_router|grpc_server|http_server|process)_[a-z_]+)`", PAGE))
    assert {name for name in named if not name.startswith("lora_router_experiment")} <= known
    settings = (
        set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE))
        - named
        - {"grpc_status", "http_response_status_code", "breaker_open", "not_ready", "round_robin"}
        - {"no_body", "not_reading"}  # bounds, which tests/test_docs.py compares with the code
    )
    assert settings <= set(Settings.model_fields)
    variables = {name.lower() for name in re.findall(r"\bLORA_ROUTER_([A-Z_]+)", PAGE)}
    of_plugins = {"otel__endpoint", "experiments__enabled"}
    others = of_plugins | {"tls_ca", "token"}  # of commands that call a server
    assert variables - others <= set(Settings.model_fields)


def test_the_sum_of_the_default_times_is_right():
    assert f"which is {Settings.model_construct().shutdown_seconds:.0f} s by default" in PAGE
