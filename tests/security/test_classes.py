"""Every class of attack on such servers has a row on the page, and a row has tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
CLASSES = (
    "unpickling from the wire",
    "unpickling weights",
    "code named in a configuration",
    "checks written as `assert`",
    "slow regular expressions (ReDoS)",
    "code in templates",
    "templates that repeat the prompt",
    "path traversal",
    "options that write files",
    "log injection, secrets in logs",
    "leaks in errors",
    "administration without authentication",
    "bypassed authentication",
    "leaks between tenants",
    "forged JWTs",
    "unbounded fan-out",
    "NaN, infinite, negative or missing numbers",
    "special tokens in texts",
    "hostile grammars",
    "tensors in requests",
    "requests made by the server (SSRF)",
    "the parser of model files",
    "files changed under the server",
    "the prefix cache across tenants",
    "mixed rows, stale memory",
    "floods of connections",
    "supply chain",
    "a hostile store of adapters",
    "poisoned adapters",
    "poisoned feedback",
    "foreign pages in an operator's browser (CSRF, DNS rebinding, frames)",
    "scripts in names, manifests, reports, prompts, answers and plans (XSS)",
    "plugins are code",
)


def rows() -> dict[str, list[str]]:
    """Test files by class, as the page has them."""
    told = PAGE.read_text(encoding="utf-8").partition("\n## Attack classes\n")[2].partition("\n## ")[0]
    found = {}
    for line in told.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] != "class":
            assert len(cells[1]) > 20, f"{cells[0]}: what is done about it?"
            found[cells[0]] = re.findall(r"`(tests/[\w/]+\.py)`", cells[2])
    return found


def names_of_tests(path: Path) -> list[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


def test_each_class_has_a_row() -> None:
    assert list(rows()) == list(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_tests(name: str) -> None:
    files = rows()[name]
    assert files
    assert [file for file in files if not (ROOT / file).is_file() or not names_of_tests(ROOT / file)] == []
