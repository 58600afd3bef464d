"""How many small faults the fast tests find: `python -m tests.mutants [--revision REVISION] [--count 60]`.

Each mutant is a checkout with one fault in one file: a comparison turned or moved by one, a constant changed,
`and` for `or`, a call dropped. The test file of the module runs first, then the fast tests of its folder. A
mutant with a failing test is killed. Some mutants behave like the original and cannot be killed, so a share
means something beside the share of another revision only.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OUTSIDE = {
    "extensions",
    "cli",
    "client",
    "v1",
    "kserve",
    "triton",
    "models",
}  # what the fast tests do not cover or git does not hold
SKIPPED = {"log", "logger", "warnings"}  # no behaviour to test
SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
FAST = ("-m", "not long and not alone and not slow and not interop and not gpu and not cluster")


@dataclass(frozen=True)
class Mutant:
    """One fault: `new` in place of the bytes from `start` to `end` of `path`."""

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        """Say where and what, on one line."""
        return (
            f"{self.path}:{self.line}: {' '.join(self.old.split())[:60]} -> {' '.join(self.new.split())[:60]}"
        )


def _changed(node: ast.AST) -> ast.AST | None:
    """Return `node` with a fault, or None where this kind of node has none."""
    fault = copy.deepcopy(node)
    match fault:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            fault.ops = [SWAPS[type(op)]()]
        case ast.BoolOp():
            fault.op = ast.Or() if isinstance(fault.op, ast.And) else ast.And()
        case ast.Constant(value=bool()):
            fault.value = not fault.value
        case ast.Constant(value=int() | float()):
            fault.value += 1
        case ast.Expr(value=ast.Call(func=func) | ast.Await(value=ast.Call(func=func))):
            if ast.unparse(func).split(".")[0] in SKIPPED:
                return None
            return ast.Pass()
        case _:
            return None
    return fault


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run: no annotations, no decorators, nothing within a formatted string."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _nodes(child)


def mutants(path: str, source: str) -> list[Mutant]:
    """Return every mutant of one file, in the order of its nodes."""
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    found = []
    for node in _nodes(ast.parse(source)):
        fault = _changed(node)
        if fault is None:
            continue
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        new = ast.unparse(fault)
        new = f"({new})" if isinstance(fault, ast.Compare | ast.BoolOp) else new
        found.append(Mutant(path, node.lineno, start, end, source.encode()[start:end].decode(), new))
    return found


def _fails(tree: Path, tests: list[str], workers: int) -> str | None:
    """Run `tests` in `tree`; returns the first that fails, or None. A run that does not end fails."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        str(workers),
        "-p",
        "no:cacheprovider",
        *FAST,
        *tests,
    ]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode in (0, 5):  # 5: no test was selected
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"pytest ended with {done.returncode}"


def tests_of(tree: Path, path: str) -> list[list[str]]:
    """Return what runs for a module, in turn: the test file that mirrors it, and the tests of its folder."""
    parts = Path(path).parts[1:]
    mirror = Path("tests", *parts[:-1], f"test_{parts[-1].removeprefix('_')}")
    depth = 2 if parts[0] == "extensions" else 1
    folder = Path("tests", *parts[:-1][:depth])
    beside = [folder] if parts[:-1] else sorted(tree.glob("tests/test_*.py"))
    own = [str(mirror)] if (tree / mirror).is_file() else []
    return [own, [str(one) for one in beside]] if own else [[str(one) for one in beside]]


def main() -> int:
    """Draw the mutants, run them, print each and the share that is killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--revision", default="HEAD", help="the commit whose code and tests are used (HEAD)")
    parser.add_argument("--count", type=int, default=60, help="how many mutants (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (1)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one run (2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, options.revision], check=True)
        try:
            return _run(tree, options)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True)


def _run(tree: Path, options: argparse.Namespace) -> int:
    everything = [
        mutant
        for path in sorted((tree / "router").rglob("*.py"))
        if "experiments" in path.parts or not OUTSIDE & set(path.relative_to(tree).parts)
        for mutant in mutants(str(path.relative_to(tree)), path.read_text(encoding="utf-8"))
    ]
    drawn = random.Random(options.seed).sample(everything, options.count)
    print(
        f"{options.count} of {len(everything)} mutants of {options.revision}, seed {options.seed}", flush=True
    )
    for folder in sorted({tuple(tests_of(tree, mutant.path)[-1]) for mutant in drawn}):
        if failing := _fails(tree, list(folder), options.workers):
            print(f"the fast tests fail without a mutant: {failing}")
            return 1
    killed = 0
    for number, mutant in enumerate(drawn, start=1):
        began, file = time.monotonic(), tree / mutant.path
        original = file.read_bytes()
        file.write_bytes(original[: mutant.start] + mutant.new.encode() + original[mutant.end :])
        *own, folder = tests_of(tree, mutant.path)
        by = (own and _fails(tree, own[0], 0)) or _fails(tree, folder, options.workers)
        file.write_bytes(original)
        killed += by is not None
        print(f"{number:3} {time.monotonic() - began:4.0f} s  {mutant}\n      {by or 'SURVIVED'}", flush=True)
    print(f"killed: {killed} of {options.count}, {killed / options.count:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
