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


def test_help_imports_nothing_heavy(slow_plugin):
    asked = [["--help"], ["--version"], ["ask", "--help"], ["serve", "--help"]]
    code = f"from router.cli.main import run, sys; [run(one) for one in {asked}]; print(sorted(sys.modules))"
    loaded = set(ast.literal_eval(run("-c", code).splitlines()[-1]))
    assert not loaded & HEAVY


@pytest.mark.alone
def test_help_takes_a_small_multiple_of_an_empty_python(slow_plugin):
    def median(*arguments):
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            run(*arguments)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    empty = median("-c", "import typer")
    assert median("-m", "router.cli", "--help") < max(LIMIT, 4 * empty)


def test_completion_offers_the_commands():
    environment = {"_LORA_ROUTER_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "lora-router "}
    environment |= {"COMP_WORDS": "lora-router ", "COMP_CWORD": "1"}
    out = run("-c", "import sys; from router.cli.main import main; sys.exit(main())", **environment)
    for command in ("serve", "ask", "adapters"):
        assert command in out
