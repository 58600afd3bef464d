"""What the documentation must name, so that it cannot fall behind; its examples run."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from deploy.pages import anchors, links
from router.client.sync import Adapters, Client
from router.client.values import SAMPLING, GenerateOptions
from router.extensions.experiments.client import Experiments
from router.plugins import PluginHost
from router.types import Request, Turn
from tests.commands import all_commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """A heading and all below it, up to the next heading of its level or above."""
    level = heading.index(" ")
    start = text.index(f"\n{heading}\n")
    end = re.search(rf"^#{{1,{level}}} ", text[start + len(heading) + 2 :], re.MULTILINE)
    return text[start : start + len(heading) + 2 + end.start()] if end else text[start:]


def test_every_folder_is_on_the_map_with_the_file_to_open_first():
    told = section(page("architecture.md"), "## Folders")
    rows = {
        m[1]: m[2]
        for m in re.finditer(r"^\| `([\w/]+)` \| .{10,} \| (?:`(\w+\.py)`)? ?\|$", told, re.MULTILINE)
    }
    folders = [p.parent for p in (ROOT / "router").rglob("__init__.py")]
    assert set(rows) == {str(p.relative_to(ROOT)) for p in folders if p.parent.name == "router"} | {"plugins"}
    assert [
        f"{folder}/{name}" for folder, name in rows.items() if name and not (ROOT / folder / name).is_file()
    ] == []


def test_files_that_the_architecture_names_exist():
    named = re.findall(r"`([\w/]+/[\w]+\.py)`", page("architecture.md"))
    assert named
    assert [n for n in named if not ((ROOT / n).is_file() or (ROOT / "router" / n).is_file())] == []


def bounds_in_code() -> set[str]:
    """The names that errors give as `bound=...`, and that the metric of refusals counts without an error."""
    found = set()
    for path in (ROOT / "router").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            names = [keyword.value for keyword in node.keywords if keyword.arg == "bound"]
            if ast.unparse(node.func).endswith("shed.labels"):
                names += node.args
            found |= {name.value for name in names if isinstance(name, ast.Constant)}
    return found


def test_every_bound_is_in_the_table_of_bounds() -> None:
    table = section(page("limits.md"), "## Load")
    rows = [row.split(" | ")[0] for row in re.findall(r"^\| `.*$", table, re.MULTILINE)]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == ["bound", *sorted(bounds_in_code())]


def test_every_method_and_option_of_the_client_is_told():
    told = page("client.md")
    kinds = (Client, Adapters, Experiments)
    told_of = ((name, value) for kind in kinds for name, value in vars(kind).items())
    methods = [name for name, value in told_of if inspect.isfunction(value) and not name.startswith("_")]
    assert [name for name in methods if f"{name}(" not in told and name != "close"] == []
    options = set(GenerateOptions.__annotations__) - set(SAMPLING)
    assert [name for name in options if f"`{name}" not in told] == []


def typed(text: str) -> list[str]:
    """The commands of ours in blocks of a shell, one a line."""
    blocks = re.findall(r"^ *```(?:sh|bash)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("lora-router ")]


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_every_command_in_a_shell_block_can_be_parsed(path: Path) -> None:
    for line in typed(path.read_text(encoding="utf-8")):
        words = shlex.split(re.split(r" [|>&]", line)[0], comments=True)[1:]
        command: Any = all_commands()
        while words and hasattr(command, "commands"):
            context = command.make_context(line, words)
            words = [*context._protected_args, *context.args]
            _, command, words = command.resolve_command(context, words)
        command.make_context(line, words)  # raises UsageError for what it does not take


def examples(text: str) -> list[str]:
    """Python blocks that are whole plugins."""
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "@hookimpl" in block]


@pytest.mark.parametrize("text", [README, page("plugins.md")], ids=["README", "plugins"])
def test_the_example_plugin_works(text, tmp_path):
    (source,) = [code for code in examples(text) if "register_classifiers" in code]
    (tmp_path / "shout.py").write_text(source)
    host = PluginHost([tmp_path])
    host.refresh()
    (registered,) = [r for r in host.registrations() if r.plugin == "shout"]
    asked = [Request(t, turns=(Turn("user", t),)) for t in ("WHO IS LIABLE?", "who is liable?")]
    loud, quiet = registered.classifier.classify_batch(asked)
    assert (loud.values, quiet) == ({"legal": 1.0}, None)


def written() -> list[Path]:
    """Every page that people read: what tools write, such as report cards, included."""
    here = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted([*here, *(ROOT / "adapters").glob("*/REPORT.md"), *(ROOT / "recipes").glob("*/README.md")])


@pytest.mark.parametrize("path", written(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """To a file or folder, and where an anchor is named, to a heading of it."""
    for target, anchor in links(path.read_text(encoding="utf-8")):
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_make_targets_that_are_named_exist():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        t
        for p in written()
        for t in re.findall(r"(?:^|`)make ([a-z-]+)", p.read_text(encoding="utf-8"), re.M)
    }
    assert {"demo", "serve", "check", "test"} <= named <= known
