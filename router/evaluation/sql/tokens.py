"""A query as tokens: as much of SQL as is needed to find statements, placeholders and literals."""

from __future__ import annotations

import re

from router.training.data import Schema

TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\d+\.\d+|\w+|<=|>=|!=|<>|==|\|\||\S"""
)
STATEMENT = re.compile(r"\bselect\b.*?(?=;|```|\n\s*\n|\Z)", re.IGNORECASE | re.DOTALL)


def tokens(sql: str) -> list[str]:
    """Tokens in lower case, names without their quotes."""
    return [_bare(token) if token[0] in '"`[' else token.lower() for token in TOKEN.findall(sql)]


def placeholders(sql: str) -> int:
    """How many `?` stand in a query."""
    return tokens(sql).count("?")


def is_ordered(sql: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY."""
    depth = 0
    for word in tokens(sql):
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "order":
            return True
    return False


def first_select(answer: str) -> str:
    """The first SELECT statement anywhere in an answer, or nothing."""
    found = STATEMENT.search(answer)
    return found[0].strip() if found else ""


def without_literals(sql: str, schema: Schema) -> str:
    """Numbers and texts become `?`; a text in double quotes is one unless the schema knows the name."""
    names = {name.lower() for table, columns in schema for name in (table, *columns)}

    def blanked(found: re.Match[str]) -> str:
        token = found[0]
        text = token[0] == "'" or (token[0] == '"' and _bare(token) not in names)
        return "?" if text or re.fullmatch(r"\d+(\.\d+)?", token) else token

    return TOKEN.sub(blanked, sql)


def _bare(token: str) -> str:
    return token[1:-1].lower()
