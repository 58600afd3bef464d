"""Personal data by rules: what is found, and what only looks like it."""

from __future__ import annotations

import pytest

from router.extensions.improve.personal import masked


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.b+c@mail.example.org today", "e-mail address"),
        ("call +49 30 1234567", "phone number"),
        ("call (030) 123456", "phone number"),
        ("call 555-123-4567.", "phone number"),
        ("06 12 34 56 78 is mine", "phone number"),
        ("card 4111 1111 1111 1111", "card number"),
        ("pay to DE89 3704 0044 0532 0130 00", "IBAN"),
        ("from 192.168.10.7", "IP address"),
        ("from 2001:db8::8a2e:370:7334", "IP address"),
    ],
)
def test_what_is_found_is_masked(text: str, kind: str) -> None:
    left, kinds = masked(text)
    assert kinds == (kind,)
    assert f"[{kind}]" in left
    assert masked(left) == (left, ())


@pytest.mark.parametrize(
    "text",
    [
        "ICD-10-CM M24.4, 2019-2020, 12:30:15, 1,234,567",
        "4111 1111 1111 1112 fails the checksum",
        "GB82 WEST 1234 5698 7654 33 fails, too",
        "SELECT a FROM t WHERE b = 20240131 AND c > 1000000",
        "999.1.1.1 and a @ b",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert masked(text) == (text, ())
