"""Mutants are one fault each, and code."""

from __future__ import annotations

import ast

from tests.mutants import mutants

SOURCE = '''\
def open_until(hour: int, sunday: bool = False) -> bool:
    """Say whether it is open."""
    log.info("asked")
    note("é", hour)
    return 8 <= hour and not sunday
'''


def test_each_mutant_changes_the_code_in_one_place() -> None:
    found = mutants("shop.py", SOURCE)
    assert [(m.line, m.old, m.new) for m in found] == [
        (1, "False", "True"),
        (4, 'note("é", hour)', "pass"),
        (5, "8 <= hour and not sunday", "(8 <= hour or not sunday)"),
        (5, "8 <= hour", "(8 < hour)"),
        (5, "8", "9"),
    ]
    for mutant in found:
        data = SOURCE.encode()
        ast.parse(data[: mutant.start] + mutant.new.encode() + data[mutant.end :])
