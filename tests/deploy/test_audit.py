"""`make audit` tells three things apart: nothing is known, something is, and nobody could be asked."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from deploy.audit import FOUND, NOT_ASKED, main, pins

LOCK = """\
jinja2==3.1.6 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
torch==2.13.0+cpu \\
    --hash=sha256:cc
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""
PINS = ["jinja2==3.1.6", "torch==2.13.0", "colorama==0.4.6"]


def test_pins_are_read_without_local_versions():
    assert pins(LOCK) == PINS


@pytest.fixture
def audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run it with a stand-in that says `answer` of the requirements it is given."""
    (tmp_path / "requirements.lock").write_text(LOCK)

    def run(answer: str) -> tuple[int, str]:
        tool = tmp_path / "pip-audit"
        keep = f"for last; do :; done\ncp $last {tmp_path}/asked"
        tool.write_text(f"#!/bin/sh\n{keep}\ncat <<'END'\n{answer}\nEND\necho down >&2\nexit 1\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        code = main(["--pip-audit", str(tool), str(tmp_path / "requirements.lock")])
        return code, capsys.readouterr().err

    return run


def known(*skipped: str, **weak: str) -> str:
    told = []
    for pin in PINS:
        name, _, version = pin.partition("==")
        vulns = [{"id": weak[name], "fix_versions": ["9.9"]}] if name in weak else []
        told.append(
            {"name": name, "skip_reason": "not found"}
            if name in skipped
            else {"name": name, "version": version, "vulns": vulns}
        )
    return json.dumps({"dependencies": told, "fixes": []})


def test_nothing_is_known(audit, tmp_path):
    assert audit(known()) == (0, "audit: nothing is known against 3 packages\n")
    assert (tmp_path / "asked").read_text().splitlines() == sorted(PINS)


def test_something_is_known(audit):
    assert audit(known(jinja2="GHSA-1")) == (FOUND, "audit: jinja2 3.1.6: GHSA-1, mended in 9.9\n")


def test_packages_that_were_passed_over_are_a_failure(audit):
    code, said = audit(known("torch", "colorama"))
    assert code == NOT_ASKED
    assert "NOT DONE: nothing was said of 2 of 3 packages (colorama==0.4.6, torch==2.13.0)" in said


def test_both_at_once_are_both_told(audit):
    code, said = audit(known("torch", jinja2="GHSA-1"))
    assert code == FOUND
    assert "GHSA-1" in said
    assert "NOT DONE" in said


@pytest.mark.parametrize("answer", ["", "no JSON", "{}", "[]"])
def test_a_database_out_of_reach_is_a_failure(audit, answer):
    code, said = audit(answer)
    assert (code, said) == (NOT_ASKED, "audit: NOT DONE: the advisory database could not be asked: down\n")
