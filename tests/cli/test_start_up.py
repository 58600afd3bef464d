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


def heavy_modules_of(*asked: list[str]) -> set[str]:
    """Those that the commands import."""
    code = f"from router.cli.main import run, sys; [run(one) for one in {asked}]; print(sorted(sys.modules))"
    return set(ast.literal_eval(run("-c", code).splitlines()[-1])) & HEAVY


def test_help_imports_nothing_heavy(slow_plugin):
    assert heavy_modules_of(["--help"], ["--version"], ["ask", "--help"]) == set()


def test_the_help_of_serve_imports_the_settings_alone(slow_plugin):
    assert heavy_modules_of(["serve", "--help"], ["replica", "--help"]) == {"pydantic_settings"}


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
