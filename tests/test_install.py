"""Texts about installing: the name `lora-router` is in no index, so nothing may say to install it from one.

The owner of that name there would run code on the machines of all users who follow such a text.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from router.errors import install_extra

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HERE = Path(__file__).relative_to(ROOT)
MADE = {"build", "dist", "node_modules", "runs", "site", "__pycache__"}  # folders that targets of make fill
# A word of a command that installs, and what follows on its line.
INSTALLERS = re.compile(
    r"""\b(?:install(?:\s+--?[\w-]+)*|pip\s+(?:install|download|wheel)|uv\s+(?:add|tool\s+run|run\s+--with)
    |uvx|pipx\s+\w+|poetry\s+add|easy_install|conda\s+install)\b(?P<rest>[^\n]*)""",
    re.VERBOSE,
)
OURS = re.compile(r"""(?<![\w./+-])lora[-_.]router(?:\[[^\]]*\])?(?:\s*(?:[=~!<>]=|[<>])\S*)?(?![\w./-])""")


def from_an_index(text: str) -> list[str]:
    """The lines that install our name from an index."""
    found = []
    for line in text.splitlines():
        for command in INSTALLERS.finditer(line):
            rest = re.split(r"&&|;|\||`| #", command["rest"])[0]
            if OURS.search(rest):
                found.append(line.strip())
    return found


def shipped() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in MADE and not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(ROOT) for name in files]
    return sorted(name for name in found if name != HERE)


@pytest.mark.parametrize(
    "line",
    [
        "pip install lora-router",
        "venv/bin/pip install 'lora-router[http]' --extra-index-url https://download.pytorch.org/whl/cpu",
        "`pip install --upgrade lora-router`, or more",
        "pip install lora_router==0.2.0",
        "pip install -q 'lora-router[s3]>=0.2'",
        "needs psycopg: install lora-router[postgres]",
        "uv add lora-router",
        "uvx lora-router serve",
        "pipx run lora-router",
    ],
)
def test_the_check_sees_each_way_to_install_the_name(line: str) -> None:
    assert from_an_index(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install -e '.[http]'",
        "pip install dist/lora_router-0.2.0-py3-none-any.whl",
        "pip install 'dist/lora_router-0.2.0-py3-none-any.whl[http]'",
        "pip install vllm; lora-router serve",
        "`make install` and then `lora-router serve`",
        "pip install /path/to/lora-router",
        "git clone URL lora-router && cd lora-router && make install",
    ],
)
def test_the_check_lets_checkouts_and_wheels_through(line: str) -> None:
    assert from_an_index(line) == []


def test_no_shipped_text_says_to_install_the_name_from_an_index() -> None:
    names = shipped()
    assert Path("README.md") in names
    found = {}
    for name in names:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        if lines := from_an_index(text):
            found[str(name)] = lines
    assert found == {}


def test_nothing_requires_the_name() -> None:
    """An extra of ours that named the package would have pip look for it in the index."""
    wanted = [
        *PROJECT["dependencies"],
        *(one for many in PROJECT["optional-dependencies"].values() for one in many),
    ]
    assert "lora-router" not in {canonicalize_name(Requirement(one).name) for one in wanted}
    for name in shipped():
        if name.suffix in {".lock", ".txt"}:
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"^lora[-_.]router\b", text, re.MULTILINE), name


def test_the_text_about_an_extra_names_the_checkout_and_the_wheel() -> None:
    assert install_extra("http") == (
        "pip install -e '.[http]' in the checkout, or pip install 'WHEEL[http]' with the wheel that "
        "`make wheel` writes there"
    )


def test_each_extra_that_a_text_names_is_one() -> None:
    extras = set(PROJECT["optional-dependencies"])
    named = set()
    for name in shipped():
        if name.suffix in {".py", ".md"} and name.parts[0] != "tests":
            text = (ROOT / name).read_text(encoding="utf-8")
            named |= set(re.findall(r"""install_extra\(["'](\w+)["']\)""", text))
            named |= set(re.findall(r"pip install -e '\.\[(\w+)\]'", text))
    assert {"jwt", "otel", "train"} <= named
    assert named <= extras
