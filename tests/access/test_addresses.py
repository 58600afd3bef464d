"""Addresses of this machine, and URLs that keys may come from."""

from __future__ import annotations

import pytest

from router.access.hosts import is_local, is_loopback, is_safe


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here
    bracketed = f"[{host}]" if ":" in host else host
    assert is_local(f"http://{bracketed}:80/x") is here
    assert is_safe(f"http://{bracketed}:80/x") is here


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://login.example/keys", True),
        ("https://login.example:8443", True),
        ("http://login.example/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("login.example", False),
        ("https://me:secret@login.example", False),
        ("https://login.example:x", False),
        ("https://[::1", False),
        ("https://login.example/\n", False),
        ("https://lögin.example", False),
    ],
)
def test_urls(url: str, safe: bool) -> None:
    assert is_safe(url) is safe
