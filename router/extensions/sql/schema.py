"""The tables that a prompt names: CREATE TABLE statements, or a line `Tables: NAME(COLUMN, ...); ...`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

MAX_TABLES, MAX_COLUMNS = 64, 1024  # of one prompt; what comes after them is not read
MAX_DEFINITION, MAX_NAME = 16_384, 128  # characters

_QUOTED = r'"(?:[^"\n]|""){1,128}"|`[^`\n]{1,128}`|\[[^\]\n]{1,128}\]'
_NAME = rf"{_QUOTED}|\w[\w$]{{0,127}}"
_CREATE = re.compile(
    rf"\bCREATE\s{{1,8}}(?:TEMP(?:ORARY)?\s{{1,8}})?TABLE\s{{1,8}}(?:IF\s{{1,8}}NOT\s{{1,8}}EXISTS\s{{1,8}})?"
    rf"(?:\w{{1,128}}\.)?({_NAME})\s{{0,8}}\(",
    re.IGNORECASE,
)
_LISTED = re.compile(r"^[ \t]*(?:Tables?|Schema):[ \t]*\n?", re.IGNORECASE | re.MULTILINE)
_ENTRY = re.compile(rf"\s{{0,64}}({_NAME})\s{{0,8}}\(")
_BETWEEN = re.compile(r"\s{0,64}[;,]?")
_COLUMN = re.compile(_NAME)
_LISTED_MARK = re.compile("[(),]")
# Brackets and commas in comments, strings and quoted names are none. What is left open goes on to the end.
_SQL_MARK = re.compile(rf"--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*(?:'|\Z)|{_QUOTED}|[(),]", re.DOTALL)
_COMMENTS = re.compile(r"(?:\s|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
_RULES = frozenset(("primary", "foreign", "unique", "check", "constraint", "index"))
_KEY = re.compile(rf"key\s{{0,8}}(?:{_NAME})?\s{{0,8}}\(\s{{0,8}}[^\s\d]", re.IGNORECASE)  # no column `key`

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
    for name, parts, created in _definitions(prompt):
        columns = tuple(dict.fromkeys(_columns(parts, created)))[:left]
        if columns and len(found) < MAX_TABLES:
            found.setdefault(name, columns)
            left -= len(columns)
    return found


def _definitions(prompt: str) -> Iterator[tuple[str, list[str], bool]]:
    """Name and the parts of what stands in the brackets, and whether it is of a CREATE TABLE."""
    created = False
    for number, match in enumerate(_CREATE.finditer(prompt)):
        if number >= MAX_TABLES:
            return
        parts, end = _parts(prompt, match.end(), _SQL_MARK)
        if end:
            created = True
            yield match[1], parts, True
    if created or (listed := _LISTED.search(prompt)) is None:
        return
    at = listed.end()
    for _ in range(MAX_TABLES):
        entry = _ENTRY.match(prompt, at)
        parts, end = _parts(prompt, entry.end(), _LISTED_MARK) if entry else ([], 0)
        if entry is None or not end:
            return
        yield entry[1], parts, False
        between = _BETWEEN.match(prompt, end + 1)
        at = between.end() if between else end + 1


def _parts(text: str, start: int, marks: re.Pattern[str]) -> tuple[list[str], int]:
    """What stands between the commas of the bracket that opened before `start`, and where that closes.

    ([], 0) where it does not close near enough.
    """
    depth, begin, parts = 1, start, []
    for mark in marks.finditer(text, start, start + MAX_DEFINITION):
        depth += (mark[0] == "(") - (mark[0] == ")")
        if not depth or (mark[0] == "," and depth == 1):
            parts.append(text[begin : mark.start()])
            begin = mark.end()
        if not depth:
            return parts, mark.start()
    return [], 0


def _columns(parts: Iterable[str], created: bool) -> Iterator[str]:
    for part in parts:
        if created:
            comments = _COMMENTS.match(part)
            at = comments.end() if comments else 0
            match = _COLUMN.match(part, at)
            if match is not None and match[0].lower() not in _RULES and not _KEY.match(part, at):
                yield match[0]
            continue
        part = part.strip()
        match = _COLUMN.match(part)
        if match is not None and match.end() == len(part):
            yield part
        elif part and len(part) <= MAX_NAME and "\n" not in part:
            yield part if not match or " " not in part else match[0]
