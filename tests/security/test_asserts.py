"""What is checked is checked by code that `python -O` keeps: no check of input is an assert."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.security.code import trees

ROOT = Path(__file__).parents[2]
# One file states which transitions of a version's own state are allowed: no input reaches them.
ALLOWED = {"registry/record.py"}
OPTIMISED = (
    *("tests/security/test_tokens.py", "tests/security/test_fan_out.py"),
    *("tests/security/test_code_in_config.py", "tests/registry/format/test_safetensors_header.py"),
)


def test_the_linter_refuses_asserts_in_the_server() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not {"S", "S1", "S10", "S101"} & set(lint["ignore"])
    off = {path for path, codes in lint["per-file-ignores"].items() if {"S", "S101"} & set(codes)}
    assert {path for path in off if path.startswith("router")} == {f"router/{path}" for path in ALLOWED}


def test_there_are_none() -> None:
    found = {
        file for file, tree in trees().items() if any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    }
    assert found <= ALLOWED


@pytest.mark.slow
@pytest.mark.long  # where there are no asserts, -O changes nothing
def test_the_checks_hold_without_asserts() -> None:
    """pytest rewrites asserts of test files, so those stay under -O; asserts of anything else are gone."""
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *OPTIMISED]
    quiet = ["-W", "ignore:assertions not in test modules", "-m", "not slow and not alone and not long"]
    done = subprocess.run([*command, *quiet], cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
