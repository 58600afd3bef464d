"""Findings: stable codes, bounded numbers."""

from __future__ import annotations

from router.registry.format.findings import MOST, Code, Findings, Severity


def test_findings_are_bounded_but_never_lose_the_refusal() -> None:
    found = Findings()
    for _ in range(MOST + 50):
        found.note(Code.CONFIG_IGNORED, "x")
    found.refuse(Code.CONFIG_VALUE, "y")
    assert len(found.items) == MOST + 1
    assert found.items[-1].severity is Severity.REFUSE


def test_codes_are_unique_and_lower_case() -> None:
    assert len({code.value for code in Code}) == len(Code)
    assert all(code.value.replace("-", "").islower() for code in Code)
