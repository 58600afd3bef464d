"""probes.jsonl: lines with prompt and expected answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.format.probes import Match, Probe, parse_probes


def test_probes_are_read_with_their_defaults() -> None:
    data = (
        b'{"prompt": "a", "expect": "b"}\n\n{"prompt": "c", "expect": "d", "match": "exact", "max_tokens": 5}'
    )
    probes, findings = parse_probes(data)
    assert findings == ()
    assert probes == (Probe("a", "b", Match.PREFIX, 32), Probe("c", "d", Match.EXACT, 5))
    assert parse_probes(b"") == ((), ())


@pytest.mark.parametrize(
    "line",
    [
        "[]", "{", "{}", '{"prompt": "a"}', '{"prompt": "", "expect": "b"}', '{"prompt": "a", "expect": " "}',
        '{"prompt": 1, "expect": "b"}', '{"prompt": "a", "expect": "b", "match": "regex"}',
        '{"prompt": "a", "expect": "b", "match": []}',
        '{"prompt": "a", "expect": "b", "max_tokens": 0}',
        '{"prompt": "a", "expect": "b", "max_tokens": true}',
        '{"prompt": "a", "expect": "b", "max_tokens": 513}',
        '{"prompt": "a", "expect": "b", "expct": 1}', '{"prompt": "a", "prompt": "b", "expect": "b"}',
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_the_others_are_kept(line: str) -> None:
    good = '{"prompt": "a", "expect": "b"}'
    probes, (finding,) = parse_probes(f"{good}\n{line}\n{good}".encode())
    assert len(probes) == 2
    assert (finding.code, finding.where) == ("probe-invalid", "probes.jsonl line 2")


def test_too_many_are_refused() -> None:
    probes, (finding,) = parse_probes(b'{"prompt": "a", "expect": "b"}\n' * 257)
    assert probes == ()
    assert "257" in finding.message


@pytest.mark.parametrize(
    ("match", "answer", "passes"),
    [
        ("exact", " yes\n", True), ("exact", "yes, it is", False), ("prefix", "yes, it is", True),
        ("prefix", "oh yes", False), ("contains", "oh yes", True), ("contains", "no", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_asked(match: Match, answer: str, passes: bool) -> None:
    assert Probe("a", "yes ", Match(match)).passes(answer) is passes


@given(st.binary(max_size=200))
def test_any_bytes_give_findings_and_nothing_else(data: bytes) -> None:
    probes, findings = parse_probes(data)
    assert len(probes) + len(findings) == len([line for line in data.split(b"\n") if line.strip()])
