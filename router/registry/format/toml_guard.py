"""A look at TOML text before the parser sees it.

tomllib takes time quadratic in the number of parts of a dotted key, recurses into nested arrays, and reads
escapes one by one: a file of 200 KiB keeps it busy for minutes. A manifest needs little of any of them.
"""

from __future__ import annotations

import re

DOTS = 8
DEPTH = 16
ESCAPES = 20_000

# Comments and the four kinds of strings; an unclosed one runs to the end of its line or of the file.
_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*",
    re.DOTALL,
)
_STRUCTURE = re.compile(r"[\[{]|[\]}]")
_BORDER = re.compile(r"[,=\[\]{}\n]")


def too_complex(text: str) -> str:
    """Why `text` is not worth parsing, or an empty string."""
    if text.count("\\") > ESCAPES:
        return f"has more than {ESCAPES} backslashes"
    bare = _OPAQUE.sub("", text)
    if any(piece.count(".") > DOTS for piece in _BORDER.split(bare)):
        return f"a key has more than {DOTS} dots"
    depth = 0
    for mark in _STRUCTURE.findall(bare):
        depth += 1 if mark in "[{" else -1
        if depth > DEPTH:
            return f"brackets are nested more than {DEPTH} deep"
    return ""
