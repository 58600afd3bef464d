"""Which transitions a version may take from where, to what, and which of them are told."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.registry.folders import Examined, FoundFolder, Place
from router.registry.format.artifact import Inspection
from router.registry.format.manifest import Manifest
from router.registry.residency import Resident
from router.registry.version import NO_GATE, AdapterVersion, Judgement, Live
from router.types import AdapterRef

ROUTER = Path(__file__).parents[2] / "router"
SEEN = Inspection("m", "1", Manifest("m"), 1, (), 1, (), weights_sha256="ab")
OTHER = AdapterRef("m", "2")
TASK: Any = object()


def found(number: int) -> FoundFolder:
    return FoundFolder(Place(Path("/x/m"), "m"), Path("/x"), refused=str(number))


def good(number: int) -> Examined:
    """Files of that number, examined."""
    return Examined(found(number), AdapterRef("m", "1"), SEEN)


def bad(number: int) -> Examined:
    return Examined(found(number), AdapterRef("m", "1"), SEEN, "bad")


def live(number: int) -> Live:
    return Live(Resident(f"digest {number}", 1), SEEN, found(number))


class CountedRecord:
    """A record of files number 1, and how often it told of a change."""

    def __init__(self) -> None:
        self.times = 0
        self.record = AdapterVersion(good(1), self.tell)

    def tell(self, record: AdapterVersion) -> None:
        assert record is self.record
        self.times += 1


def load(record: AdapterVersion, number: int = 1) -> None:
    record.load_began(TASK)
    record.load_attempted()
    record.load_succeeded(live(number))
    record.load_ended()


def refuse_load(record: AdapterVersion) -> None:
    record.load_attempted()
    record.load_refused("bad")


# how a version got to where it is
FROM: dict[str, Callable[[AdapterVersion], object]] = {
    "new": lambda r: None,
    "bad": lambda r: r.files_examined(bad(1)),
    "loading": lambda r: r.load_began(TASK),
    "live": load,
    "reload": lambda r: (load(r), r.load_began(TASK)),
    "stale": lambda r: (load(r), r.files_examined(good(2))),
    "lost": lambda r: (load(r), r.files_examined(bad(2))),
    "moved": lambda r: (load(r), r.folder_taken(OTHER)),
    "evicted": lambda r: (load(r), r.evicted()),
    "gone": lambda r: (load(r), r.gone()),
}
TRANSITIONS: dict[str, Callable[[AdapterVersion], object]] = {
    "files_examined": lambda r: r.files_examined(good(3)),
    "files_refused": lambda r: r.files_examined(bad(3)),
    "folder_taken": lambda r: r.folder_taken(OTHER),
    "superseded": lambda r: r.superseded(),
    "gone": lambda r: r.gone(),
    "preload_wanted": lambda r: r.preload_wanted(),
    "preload_offered": lambda r: r.preload_offered(),
    "preload_dropped": lambda r: r.preload_dropped(),
    "load_began": lambda r: r.load_began(TASK),
    "load_attempted": lambda r: r.load_attempted(),
    "load_succeeded": lambda r: r.load_succeeded(live(3)),
    "load_refused": refuse_load,
    "load_postponed": lambda r: r.load_postponed("busy", 1.0),
    "load_ended": lambda r: r.load_ended(),
    "leased": lambda r: r.leased().__enter__(),
    "pin": lambda r: r.pin(True),
    "unloaded": lambda r: r.unloaded(),
    "evicted": lambda r: r.evicted(),
    "weights_read": lambda r: r.weights_read(found(1), "cd"),
    "judged": lambda r: r.judged(Judgement()),
    "ruled": lambda r: r.ruled(NO_GATE),
    "row_changed": lambda r: r.row_changed(),
}
# The first letter of the state after it, ! where it is told, - where it must not happen.
TABLE = """
                  new bad loading live reload stale lost moved evicted gone
files_examined    D!  D!  L!      R!   R!     R!    R!   R!    O!      -
files_refused     Q!  Q!  L!      R!   R!     R!    R!   R!    Q!      -
folder_taken      D   Q   L       R    R      R     R    R     O       -
superseded        -   -   -       -    -      -     -    R!    -       -
gone              D   Q   L       O    L      O     O    O     O       -
preload_wanted    D   Q   L       R    R      R     R    R     O       O
preload_offered   D   Q   L       R    R      R     R    R     O       O
preload_dropped   D   Q   L       R    R      R     R    R     O       O
load_began        L!  L!  -       R!   -      R!    R!   R!    L!      L
load_attempted    -   -   L       -    R      -     -    -     -       -
load_succeeded    -   -   R       -    R      -     -    -     -       -
load_refused      -   -   L       -    R      -     -    -     -       -
load_postponed    -   -   L       -    R      -     -    -     -       -
load_ended        -   -   D!      -    R!     -     -    -     -       -
leased            -   -   -       R    R      R     R    R     -       -
pin               D!  Q!  L!      R!   R!     R!    R!   R!    O!      O
unloaded          -   -   -       O!   L!     O!    Q!   O!    -       -
evicted           -   -   -       O!   L!     O!    -    O!    -       -
weights_read      D!  Q!  L!      R!   R!     R     R    R!    O!      O
judged            D   Q   L       R    R      R     R    R     O       O
ruled             D   Q   L       R    R      R     R    R     O       O
row_changed       D   Q   L       R    R      R     R    R     O       O
"""


def table() -> dict[tuple[str, str], str]:
    columns, *rows = (line.split() for line in TABLE.strip().splitlines())
    return {(start, row[0]): cell for row in rows for start, cell in zip(columns, row[1:], strict=True)}


def outcome(start: str, transition: str) -> str:
    counted = CountedRecord()
    FROM[start](counted.record)
    before = counted.times
    try:
        TRANSITIONS[transition](counted.record)
    except AssertionError:
        return "-"
    return str(counted.record.state)[0].upper() + "!" * (counted.times - before)


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("start", FROM)
def test_transitions(start, transition):
    assert outcome(start, transition) == table()[start, transition]


def test_the_table_is_whole():
    public = {
        name for name, what in vars(AdapterVersion).items() if callable(what) and not name.startswith("_")
    }
    assert public - {"awaited", "info", "may_load"} == TRANSITIONS.keys() - {"files_refused"}
    assert table().keys() == {(start, transition) for start in FROM for transition in TRANSITIONS}


@pytest.mark.slow
def test_only_a_version_changes_itself():
    fields, wrong = vars(CountedRecord().record).keys(), []
    for path in (p for p in ROUTER.rglob("*.py") if p != ROUTER / "registry/version.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
                continue
            owner = ast.unparse(node.value)
            private = node.attr.startswith("_") and owner != "self"
            if node.attr in fields and (private or owner in ("record", "r", "v", "version")):
                wrong.append(f"{path.relative_to(ROUTER)}:{node.lineno} {owner}.{node.attr}")
    assert not wrong


def test_refused_files_are_not_tried_again_by_themselves():
    record = CountedRecord().record
    record.load_began(TASK)
    refuse_load(record)
    record.load_ended()
    assert (record.state, record.error, record.may_load(0.0)) == ("quarantined", "bad", False)
    record.files_examined(good(1))  # looked at again
    assert (record.state, record.error) == ("quarantined", "bad")
    record.files_examined(good(2))
    assert (record.state, record.error, record.may_load(0.0)) == ("discovered", "", True)


def test_a_load_of_files_that_were_replaced_meanwhile_says_nothing_of_the_new_ones():
    record = CountedRecord().record
    record.load_began(TASK)
    record.load_attempted()
    record.files_examined(good(2))
    record.load_refused("bad")
    record.load_ended()
    assert (record.state, record.error) == ("discovered", "")


def test_files_refused_during_a_load_are_said_beside_what_serves():
    record = CountedRecord().record
    load(record)
    record.load_began(TASK)
    record.load_attempted()
    record.files_examined(bad(2))
    record.load_succeeded(live(1))
    record.load_ended()
    assert (record.state, record.keeps, record.outdated, record.awaits_files) == ("ready", True, False, True)
    assert record.error == "the files on disk are refused, those read before serve on: bad"
    record.unloaded()
    assert record.state == "quarantined"


def test_a_fault_of_others_is_tried_again_later():
    record = CountedRecord().record
    record.load_began(TASK)
    record.load_postponed("busy", 5.0)
    record.load_ended()
    assert (record.state, record.error) == ("discovered", "busy")
    assert (record.may_load(4.0), record.may_load(5.0)) == (False, True)


def test_a_version_is_offered_once_and_wanted_until_it_was_loaded():
    record = CountedRecord().record
    record.preload_offered()
    assert record.awaits_preload
    record.preload_dropped()
    record.preload_offered()
    assert not record.awaits_preload
    record.preload_wanted()
    assert record.awaits_preload
    load(record)
    record.evicted()
    record.preload_wanted()
    assert not record.awaits_preload


def test_what_keeps_it_in_memory():
    record = CountedRecord().record
    load(record)
    assert not record.keeps
    with record.awaited():
        assert record.keeps
    record.pin(True)
    assert record.keeps
    with pytest.raises(AssertionError):
        record.evicted()
    record.unloaded()
    assert (record.keeps, record.pinned) == (False, False)


def test_leases_are_counted_and_told_to_nobody():
    counted = CountedRecord()
    load(counted.record)
    before = (counted.times, counted.record.revision)
    with counted.record.leased():
        with counted.record.leased():
            assert counted.record.info(default=True).leases == 2
        info = counted.record.info(default=True)
    assert (info.leases, info.last_used is not None, info.default) == (1, True, True)
    assert (counted.times, counted.record.revision) == before


def test_weights_that_were_read_count_until_the_files_change():
    record = CountedRecord().record
    record.weights_read(found(1), "cd")
    assert record.weights_sha256 == "cd"
    record.files_examined(good(2))
    assert record.weights_sha256 == ""
    load(record, 2)
    assert record.weights_sha256 == "ab"
