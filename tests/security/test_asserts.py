"""What is checked is checked by code that `python -O` keeps: no check of input is an assert."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from tests.security.code import trees

ROOT = Path(__file__).parents[2]
# One file states which transitions of a version's own state are allowed: no input reaches them.
ALLOWED = {"registry/version.py"}


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
