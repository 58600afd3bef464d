"""A thread that needs a name of transformers while another one imports the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import router

BESIDE = """
import sys, threading
from router.models.importing import import_transformers
threading.Thread(target=__import__, args=("transformers",)).start()
while "transformers.{module}" not in sys.modules:
    pass
import_transformers()
from transformers import AutoTokenizer
print(AutoTokenizer.__name__)
"""


@pytest.mark.parametrize("module", ["utils", "utils.import_utils"])
def test_it_waits_for_another_threads_import(module: str) -> None:
    code = BESIDE.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("AutoTokenizer\n", "")


def test_no_function_of_a_start_takes_a_name_before_the_import_is_complete() -> None:
    root = Path(router.__file__).parent
    taken = 0
    for file in (*root.glob("engine/**/*.py"), root / "models/encoder.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node.lineno for node in ast.walk(function) if _completes(node)]
            names = [node.lineno for node in ast.walk(function) if _takes(node)]
            taken += len(names)
            if names:
                assert calls, f"{file.name}: {function.name}"
                assert min(calls) < min(names)
    assert taken > 5


def _completes(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "import_transformers"


def _takes(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transformers"
