"""Which version answers for a name.

Versions that passed the gate (`verdict.open`) come before those that did not, whatever their numbers.
"""

from __future__ import annotations

from collections.abc import Collection

from router.registry.gate.judging import Standing
from router.registry.record import Record
from router.registry.versions import Key, version_key


def default_version(records: Collection[Record], chosen: str, current: str) -> str:
    """The default version of a name, '' if none can be.

    A chosen version that is there is the default even when it is quarantined: serving another one in its
    place could bring back what was rolled back. Otherwise the default moves to a higher version only after
    that one was loaded and proven, so that the present one serves until then; where there is no present one
    it is the highest. One that did not pass the gate never takes over from one that did, and gives way to it.
    """
    if any(r.ref.version == chosen for r in records):
        return chosen
    usable = [r for r in records if not r.quarantined or r.live is not None]
    present = next((r for r in usable if r.ref.version == current), None)
    proven = [r for r in usable if r.proven]
    if present is None:
        best = _foremost(usable)
        return _highest([r for r in best if r.proven] or best)
    passed = [r for r in proven if r.verdict.open]
    if not present.verdict.open and passed:
        return _highest(passed)
    rivals = passed if present.verdict.open else proven
    return _highest([present, *(r for r in rivals if _order(r) > _order(present))])


def candidate(records: Collection[Record], current: str) -> Record | None:
    """The version that would become the default if it were proven: the highest above the present one."""
    open_now = any(r.verdict.open for r in records if r.ref.version == current)
    fresh = [r for r in records if not r.quarantined and not r.proven and r.ref.version != current]
    passed = [r for r in fresh if r.verdict.open]
    above = [r for r in (passed if open_now else fresh) if _order(r) > version_key(current)]
    return max(above if open_now else passed or above, key=_order, default=None)


def _foremost(records: Collection[Record]) -> list[Record]:
    """Those that passed the gate; else those that may yet pass; else all."""
    passed = [r for r in records if r.verdict.open]
    return passed or [r for r in records if r.verdict.standing is Standing.PENDING] or list(records)


def _highest(records: Collection[Record]) -> str:
    best = max(records, key=_order, default=None)
    return best.ref.version if best is not None else ""


def _order(record: Record) -> Key:
    return version_key(record.ref.version)
