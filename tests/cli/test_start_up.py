"""The command answers at once: nothing heavy is imported before a command runs."""

import ast
import os
import statistics
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

# typer itself needs pydantic, but nothing of pydantic-settings
HEAVY = {"torch", "transformers", "peft", "grpc", "numpy", "pydantic_settings", "google.protobuf", "rich"}
LIMIT = 0.3


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    ).stdout


@pytest.fixture
def slow_plugin(tmp_path, monkeypatch):
    """A plugins folder whose plugin imports torch, and an adapters folder beside it."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "slow.py").write_text("import torch\nraise SystemExit('loaded')\n")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], ["serve", "--help"]])
def test_help_imports_nothing_heavy(slow_plugin, arguments):
    code = f"import sys; from router.cli.main import run; run({arguments}); print(sorted(set(sys.modules)))"
    loaded = set(ast.literal_eval(run("-c", code).splitlines()[-1]))
    assert not loaded & HEAVY


@pytest.mark.alone
def test_help_takes_a_small_multiple_of_an_empty_python(slow_plugin):
    def median(*arguments):
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run(*arguments)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    empty = median("-c", "import typer")
    assert median("-m", "router.cli", "--help") < max(LIMIT, 4 * empty)


def test_version_is_one_line():
    assert run("-m", "router.cli", "--version").startswith("lora-router ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_the_commands(shell):
    environment = {"_LORA_ROUTER_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "lora-router "}
    environment |= {
        "COMP_WORDS": "lora-router ",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    out = run("-c", "import sys; from router.cli.main import main; sys.exit(main())", **environment)
    for command in ("serve", "ask", "adapters"):
        assert command in out
