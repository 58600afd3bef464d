"""Versions with known weaknesses cannot be installed: the project itself asks for newer ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
# The last version that an advisory names, by package; see docs/security.md.
WEAK = {
    "torch": "2.9.1",  # CVE-2026-24747
    "transformers": "5.9.0",  # CVE-2026-4372, CVE-2026-5241
    "peft": "0.21.1",  # imports what a configuration names
    "jinja2": "3.1.5",  # CVE-2025-27516
    "protobuf": "6.33.4",  # CVE-2026-0994
}


@pytest.mark.parametrize("package", WEAK)
def test_what_is_asked_for_leaves_weak_versions_out(package: str) -> None:
    """By an extra where the core does not ask; ours refuses an older jinja2 that another package brought."""
    extras = [one for many in PROJECT["optional-dependencies"].values() for one in many]
    asked = [r for r in map(Requirement, [*PROJECT["dependencies"], *extras]) if r.name.lower() == package]
    assert asked
    for requirement in asked:
        assert not requirement.specifier.contains(Version(WEAK[package]))
        assert not requirement.specifier.contains(Version("0.1"))
