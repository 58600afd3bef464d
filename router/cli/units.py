"""Numbers for people."""

from __future__ import annotations

import time


def size(count: int) -> str:
    """Bytes in powers of 1000: 9.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as 0.4 ms, 120 ms, 1.5 s."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def ago(then: float | None, now: float | None = None) -> str:
    """How long ago a unix time was; empty for never."""
    if then is None:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - then)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def bar(value: float, width: int, plain: bool) -> str:
    """A bar for a value in [0, 1]."""
    return ("#" if plain else "█") * round(min(max(value, 0.0), 1.0) * width)
