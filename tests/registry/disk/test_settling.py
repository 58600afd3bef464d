from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from router.registry.disk.places import Found, Place, Scan, Stamp
from router.registry.disk.reading import LONG_UNTOUCHED, Settler

A, B = Path("/x/a"), Path("/x/b")


def found(path: Path, size: int, age: float = 0.0) -> Found:
    changed = int((time.time() - age) * 1e9)
    return Found(Place(path, path.name), path.parent, Stamp((("w", size, changed, changed, 1),)))


def scan(*there: Found) -> Scan:
    return Scan({f.place.folder: f for f in there})


def test_a_folder_is_due_once_after_it_was_the_same_for_two_looks() -> None:
    settler, one, two = Settler(0.3), found(A, 1), found(A, 2)
    assert settler.look(scan(one), 10.0).unsettled
    assert not settler.look(scan(two), 10.4).ready  # changed in between
    due = settler.look(scan(two), 10.8)
    assert (due.ready, due.unsettled) == ([two], False)
    assert settler.look(scan(two), 11.0).ready == [two]  # until it was examined
    settler.done([two])
    assert not settler.look(scan(two), 12.0).ready
    settler.again(A)
    assert settler.look(scan(two), 13.0).ready == [two]
    assert settler.quiet(two, 13.4) == 13.4 - 10.4
    assert settler.quiet(one, 13.4) == 0


def test_what_was_examined_while_it_changed_is_not_done() -> None:
    settler, one, two = Settler(0.3), found(A, 1), found(A, 2)
    settler.look(scan(one), 10.0)
    settler.look(scan(two), 10.1)
    settler.done([one])
    assert settler.look(scan(two), 11.0).ready == [two]


def test_at_the_start_what_is_old_need_not_be_waited_for() -> None:
    settler, old, new = Settler(0.3), found(A, 1, LONG_UNTOUCHED + 5), found(B, 1)
    due = settler.look(scan(old, new), 10.0)
    assert (due.ready, due.unsettled) == ([old], True)
    moved_in = replace(found(Path("/x/c"), 1), stamp=old.stamp)
    assert not Settler.look(settler, scan(old, new, moved_in), 10.1).ready[1:]


def test_a_folder_is_gone_after_it_was_missing_for_two_looks() -> None:
    settler, one = Settler(0.3), found(A, 1, 100)
    settler.look(scan(one), 10.0)
    settler.done([one])
    assert settler.look(scan(), 11.0).unsettled
    assert not settler.look(scan(one), 11.2).gone
    assert not settler.look(scan(), 11.4).gone
    assert settler.look(scan(), 11.8).gone == [A]
    assert not settler.look(scan(), 12.2).gone
