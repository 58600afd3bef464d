"""Writes the list of modules in docs/architecture.md from their docstrings: `python -m tests.module_list`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
HEADING = "## Modules\n"
GROUPS = {
    "Contracts between layers": ("router/*.py",),
    "Server": ("router/server/**/*.py",),
    "Routing": ("router/routing/**/*.py",),
    "Plugin host": ("router/plugins/**/*.py",),
    "First-party classifiers": ("plugins/*.py",),
    "Registry": ("router/registry/**/*.py",),
    "Experiments": ("router/experiments/**/*.py",),
    "Engine": ("router/engine/**/*.py",),
    "Base models": ("router/models/**/*.py",),
    "Training and evaluation": ("router/training/**/*.py", "router/evaluation/**/*.py"),
    "Client": ("router/client/**/*.py",),
    "Command line": ("router/cli/**/*.py",),
    "Others": ("router/**/*.py",),
}


def sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    return text if text.endswith(".") else f"{text.rstrip(':')}."


def lines() -> Iterator[str]:
    """A heading for each group, a line for each module; a module stands in the first group that has it."""
    done: set[Path] = set()
    for title, patterns in GROUPS.items():
        found = [p for pattern in patterns for p in sorted(ROOT.glob(pattern)) if "v1" not in p.parts]
        fresh = [p for p in found if p not in done]
        done.update(fresh)
        if fresh:
            yield f"\n### {title}\n"
            yield from (f"- `{p.relative_to(ROOT)}`: {sentence(p)}" for p in fresh)


def main() -> None:
    """Replace everything below the heading."""
    text = PAGE.read_text(encoding="utf-8")
    above = text[: text.index(HEADING) + len(HEADING)]
    PAGE.write_text(above + "\n".join(lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
