"""Text from untrusted files in messages, and findings."""

from __future__ import annotations

import pytest

from router.registry.format.untrusted import MOST, Code, FolderFindings, Severity, show, some

UNTRUSTED: list[object] = [
    "\n\x1b[31m",
    "\ud800",
    10**5000,
    "x" * 9999,
    [1] * 99,
    {"a": 1},
    float("nan"),
    b"\xff",
]


@pytest.mark.parametrize("value", UNTRUSTED, ids=range(len(UNTRUSTED)))
def test_untrusted_values_are_shown_on_one_short_line(value):
    text = show(value)
    assert text.isprintable()
    assert len(text) <= 90
    text.encode()


def test_some_names():
    assert some(["a"]) == "'a'"
    assert some("abcde") == "'a', 'b', 'c' and 2 more"


# -- findings: stable codes, bounded numbers


def test_findings_are_bounded_but_never_lose_the_refusal():
    found = FolderFindings()
    for _ in range(MOST + 50):
        found.note(Code.CONFIG_IGNORED, "x")
    found.refuse(Code.CONFIG_VALUE, "y")
    assert len(found.items) == MOST + 1
    assert found.items[-1].severity is Severity.REFUSE
