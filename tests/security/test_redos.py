"""No pattern comes from outside, and none of the server's own takes long, whatever it is shown."""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.security.code import trees

FUNCTIONS = {"compile", "match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split"}
SECONDS = 0.1
PIECES = (
    *(
        "a",
        "a.",
        "a/",
        "aA",
        "/",
        "//",
        "\\",
        '"',
        "'",
        "\"'",
        "<",
        "<a",
        "{1",
        "{1,",
        "{1,1}",
        "(",
        "[",
        "=",
    ),
    *(
        "a=",
        ":",
        "://",
        "a://",
        " ",
        "\n",
        "\t",
        "0",
        "0.",
        "-",
        "_",
        "~/",
        "#",
        "|",
        "%41",
        "\u00e9",
        "\u0661",
    ),
    *("Error", "a.py", "<a object at 0x", "<class '", "lrk_a_", "adapters/a/versions/", "sha256:"),
)
ENDS = ("!", "X\n")
LONG = 10_000  # characters
OFFLINE = ("cli/", "extensions/training/", "models/", "testing.py")  # commands of an operator
# Made of the names of a tokenizer's special tokens, each escaped; of patterns and keys that stand beside it.
MADE = {"engine/prompt.py", "engine/lengths.py", "shared/database.py"}


def from_outside(tree: ast.Module) -> Iterator[int]:
    """Lines that compile a pattern which is not written there or made of constants of the module."""
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for whole in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in ast.walk(whole)
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        of = node.func.value
        if isinstance(of, ast.Name) and of.id == "re" and node.func.attr in FUNCTIONS:
            names = {inner.id for inner in ast.walk(node.args[0]) if isinstance(inner, ast.Name)}
            if not names <= constants:
                yield node.lineno


def sources() -> Iterator[tuple[str, ast.Module]]:
    """What runs in a server: by file, its code."""
    for file, tree in trees().items():
        if not file.startswith((*OFFLINE, "engine/triton/")):
            yield file, tree


def test_patterns_are_written_in_the_code() -> None:
    assert {file for file, tree in sources() if list(from_outside(tree))} == MADE


def test_the_scan_sees_one_that_is_not() -> None:
    code = "import re\nA = 'a'\nre.compile(A + 'b')\ndef f(said): return re.compile(rf'x{said}')\n"
    assert list(from_outside(ast.parse(code))) == [4]


def own_patterns() -> dict[str, Callable[[str], object]]:
    """Every compiled pattern of a module as it is used: by `NAME.method`."""
    used = {
        (node.value.id, node.attr)
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in FUNCTIONS
    }
    found: dict[str, Callable[[str], object]] = {}
    for file, _ in sources():
        module = importlib.import_module("router." + file.removesuffix(".py").replace("/", "."))
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                for method in {method for known, method in used if known == name}:
                    found[f"{name}.{method} {value.pattern}"] = partial(use, value, method)
    return found


def use(pattern: re.Pattern[str], method: str, text: str) -> None:
    """As the code does, to the end."""
    if method == "finditer":
        for _ in pattern.finditer(text):
            pass
    elif method.startswith("sub"):
        pattern.sub("", text)
    else:
        getattr(pattern, method)(text)


def seconds(call: Callable[[str], object], piece: str) -> float:
    """Of processor time, for a long text of the piece; the better of two."""
    times = []
    for _ in range(2):
        start = time.thread_time()
        for end in ENDS:
            call(piece * (LONG // len(piece)) + end)
        times.append(time.thread_time() - start)
        if times[-1] < SECONDS:
            break
    return min(times)


@pytest.mark.slow
def test_no_pattern_of_the_server_is_slow() -> None:
    patterns = own_patterns()
    assert len(patterns) > 20
    slow = {
        name: piece for name, call in patterns.items() for piece in PIECES if seconds(call, piece) > SECONDS
    }
    assert slow == {}


def test_a_slow_one_would_be_seen() -> None:
    quadratic, linear = re.compile(r"a*x"), re.compile(r"ax")
    taken = [seconds(partial(use, pattern, "search"), "a") for pattern in (quadratic, linear)]
    assert taken[0] > 50 * taken[1]
