"""The tables that a prompt names: CREATE TABLE statements, or a line `Tables: NAME(COLUMN, ...); ...`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

MAX_TABLES, MAX_COLUMNS = 64, 1024  # of one prompt; what comes after them is not read
MAX_DEFINITION, MAX_NAME = 16_384, 128  # characters

_NAME = r'"[^"\n]{1,128}"|`[^`\n]{1,128}`|\[[^\]\n]{1,128}\]|\w[\w$]{0,127}'
_CREATE = re.compile(
    rf"\bCREATE\s{{1,8}}(?:TEMP(?:ORARY)?\s{{1,8}})?TABLE\s{{1,8}}(?:IF\s{{1,8}}NOT\s{{1,8}}EXISTS\s{{1,8}})?"
    rf"(?:\w{{1,128}}\.)?({_NAME})\s{{0,8}}\(",
    re.IGNORECASE,
)
_LISTED = re.compile(r"^[ \t]*(?:Tables?|Schema):[ \t]*\n?", re.IGNORECASE | re.MULTILINE)
_ENTRY = re.compile(rf"\s{{0,64}}({_NAME})\s{{0,8}}\(")
_BETWEEN = re.compile(r"\s{0,64}[;,]?")
_COLUMN = re.compile(_NAME)
_RULES = frozenset(("primary", "foreign", "unique", "check", "constraint", "key", "index"))

Tables = Mapping[str, tuple[str, ...]]  # columns by table, names as the prompt writes them


def tables_of(prompt: str) -> Tables:
    """Tables with their columns, in order; {} where the prompt names none. Time is linear in the prompt.

    >>> tables_of("Tables: pet(id, name); owner(id, pet_id)\\nQuestion: How many pets?")
    {'pet': ('id', 'name'), 'owner': ('id', 'pet_id')}
    >>> tables_of("CREATE TABLE pet (id INTEGER PRIMARY KEY, price DECIMAL(8, 2), UNIQUE (id));")
    {'pet': ('id', 'price')}
    """
    found: dict[str, tuple[str, ...]] = {}
    left = MAX_COLUMNS
    for name, definition, created in _definitions(prompt):
        columns = tuple(dict.fromkeys(_columns(definition, created)))[:left]
        if columns and len(found) < MAX_TABLES:
            found.setdefault(name, columns)
            left -= len(columns)
    return found


def _definitions(prompt: str) -> Iterator[tuple[str, str, bool]]:
    """Name and what stands in the brackets, and whether it is of a CREATE TABLE."""
    created = False
    for number, match in enumerate(_CREATE.finditer(prompt)):
        if number >= MAX_TABLES:
            return
        end = _closed(prompt, match.end())
        if end:
            created = True
            yield match[1], prompt[match.end() : end], True
    if created or (listed := _LISTED.search(prompt)) is None:
        return
    at = listed.end()
    for _ in range(MAX_TABLES):
        entry = _ENTRY.match(prompt, at)
        end = _closed(prompt, entry.end()) if entry else 0
        if entry is None or not end:
            return
        yield entry[1], prompt[entry.end() : end], False
        between = _BETWEEN.match(prompt, end + 1)
        at = between.end() if between else end + 1


def _closed(text: str, start: int) -> int:
    """Where the bracket closes that opened before `start`; 0 if that is not near enough."""
    depth = 1
    for at in range(start, min(len(text), start + MAX_DEFINITION)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return 0


def _columns(definition: str, created: bool) -> Iterator[str]:
    for part in _parts(definition):
        match = _COLUMN.match(part)
        if created and match is not None:
            if match[0].lower() not in _RULES:
                yield match[0]
        elif match is not None and match.end() == len(part):
            yield part
        elif not created and part and len(part) <= MAX_NAME and "\n" not in part:
            yield part if not match or " " not in part else match[0]


def _parts(definition: str) -> Iterator[str]:
    """What stands between commas that are in no brackets."""
    depth, begin = 0, 0
    for at, letter in enumerate(definition):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            yield definition[begin:at].strip()
            begin = at + 1
    yield definition[begin:].strip()
