"""A unit as a number in [0, 1): SHA-256 of salt and unit, which every language has."""

from __future__ import annotations

from hashlib import sha256

SEPARATOR = "\x1f"  # ASCII unit separator: no salt may hold it, so salt and unit cannot run together


def fraction(salt: str, unit: str) -> float:
    """The first 53 bits of SHA-256(salt, separator, unit), as a multiple of 2**-53.

    53 bits are what a double holds exactly: 64 bits could be rounded up to 1.0, and differently elsewhere.
    """
    digest = sha256(f"{salt}{SEPARATOR}{unit}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
