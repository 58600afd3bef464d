"""Personal data in a text, found by rules: e-mail, phone, card (Luhn), IBAN (checksum) and IP addresses.

Rules find what has a form. They do not find names or addresses of streets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address

_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,8}\b")
_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+\d(?:[ ()/.-]{0,2}\d){7,14}"  # international
    r"|\(\d{2,5}\) ?\d(?:[ -]?\d){4,9}"  # (030) 123456
    r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # 555-123-4567
    r"|0\d{1,4}(?: \d{2,8}){2,4}"  # 06 12 34 56 78
    r"|0\d{2,5}[/-]\d{5,9}"  # 030/1234567
    r")(?![\w-])"
)
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7})(?![\w:])"
)


def _is_card(text: str) -> bool:
    digits = [int(one) for one in text if one.isdigit()][::-1]
    doubled = (2 * one - 9 * (one > 4) for one in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    bare = text.replace(" ", "")
    if not 15 <= len(bare) <= 34:
        return False
    return int("".join(str(int(one, 36)) for one in bare[4:] + bare[:4])) % 97 == 1


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _always(_: str) -> bool:
    return True


RULES: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("e-mail address", _EMAIL, _always),
    ("IBAN", _IBAN, _is_iban),
    ("card number", _CARD, _is_card),
    ("phone number", _PHONE, _always),
    ("IP address", _IP, _is_ip),
)


def masked(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with `[KIND]` in place of what was found, and the kinds that were.

    >>> masked("write to ann@example.org")
    ('write to [e-mail address]', ('e-mail address',))
    """
    kinds: list[str] = []
    for kind, pattern, holds in RULES:
        found = [match for match in pattern.finditer(text) if holds(match[0])]
        if found:
            kinds.append(kind)
            text = "".join(_without(text, found, f"[{kind}]"))
    return text, tuple(kinds)


def _without(text: str, found: list[re.Match[str]], mask: str) -> Iterator[str]:
    end = 0
    for match in found:
        yield text[end : match.start()] + mask
        end = match.end()
    yield text[end:]
