"""The locks: every package with hashes, and every requirement of the project met: no lock is stale."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "requirements.lock": ("standard", "jwt", "native", "otel", "postgres"),
    "requirements-dev.lock": ("dev", "standard", "native", "train", "pictures"),
}
# What advisories ask for: no later edit may lower them.
FLOORS = {
    "torch": "2.10",
    "transformers": "5.10",
    "peft": "0.21.2",
    "jinja2": "3.1.6",
    "protobuf": "6.33.5",
    "pyjwt": "2.15",
}


def locked(name: str) -> dict[str, str]:
    blocks = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    found = {}
    for block in blocks:
        head = re.match(r"([a-z0-9.-]+)==([^\s;\\]+)", block)
        assert head, block[:80]
        assert "--hash=sha256:" in block, f"{head[1]} has no hash"
        found[head[1]] = head[2]
    return found


@pytest.mark.parametrize("name", EXTRAS)
def test_what_the_project_asks_for_is_locked(name):
    versions = locked(name)
    extras = (line for extra in EXTRAS[name] for line in PROJECT["optional-dependencies"][extra])
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]
    unmet = [
        str(one)
        for one in wanted
        if not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"), prereleases=True)
    ]
    assert unmet == [], "run `make lock`"


@pytest.mark.parametrize("name", EXTRAS)
def test_floors_for_known_weaknesses(name):
    versions = locked(name)
    low = [
        p for p, floor in FLOORS.items() if not Requirement(f"{p}>={floor}").specifier.contains(versions[p])
    ]
    assert low == []


def test_tests_run_on_what_the_image_has():
    image, tests = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {p: tests[p] for p in image.keys() & tests.keys()} == {
        p: image[p] for p in image.keys() & tests.keys()
    }


def test_torch_is_the_build_that_was_asked_for():
    asked = re.search(r"^torch==(\S+)$", (ROOT / "deploy/torch.txt").read_text(), re.MULTILINE)
    assert asked
    assert {locked(name)["torch"] for name in EXTRAS} == {asked[1]}
