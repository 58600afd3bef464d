"""How large the project is, in numbers to compare with earlier ones: `python -m tests.measures`.

Informative: nothing fails because of them.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measures(root: Path) -> dict[str, int]:
    """The numbers of a checkout by name. Generated modules (`*_pb2*.py`) do not count."""
    package = root / "router"
    modules = modules_in(package)
    core = [path for path in modules if package / "extensions" not in path.parents]
    classes = Counter(name for path in modules for name in class_names(path))
    return {
        "direct dependencies of the core": len(dependencies(root / "pyproject.toml")),
        "lines of router": lines(modules),
        "lines of the core": lines(core),
        "modules of router": len(modules),
        "modules of the core": len(core),
        "class names used twice or more": sum(times > 1 for times in classes.values()),
        "lines of tests": lines(modules_in(root / "tests")),
        "words of docs": words((root / "docs").rglob("*.md")),
        "words of README": words([root / "README.md"]),
    }


def dependencies(project: Path) -> list[str]:
    """What an install without extras asks for itself."""
    found: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return found


def modules_in(folder: Path) -> list[Path]:
    """Python files below it, without generated ones."""
    return sorted(path for path in folder.rglob("*.py") if "_pb2" not in path.name)


def class_names(module: Path) -> list[str]:
    """The classes that it defines, nested ones too."""
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return [node.name for node in nodes if isinstance(node, ast.ClassDef)]


def lines(files: Iterable[Path]) -> int:
    """All of them, empty ones too."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def words(files: Iterable[Path]) -> int:
    """What whitespace separates."""
    return sum(len(file.read_text(encoding="utf-8").split()) for file in files)


if __name__ == "__main__":
    for name, number in measures(ROOT).items():
        print(f"{name:32}{number:9,}")
