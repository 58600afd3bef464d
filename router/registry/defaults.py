"""Which version answers for a name."""

from __future__ import annotations

from collections.abc import Collection

from router.registry.record import Record
from router.registry.versions import Key, version_key


def default_version(records: Collection[Record], chosen: str, current: str) -> str:
    """The default version of a name, '' if none can be.

    A chosen version that is there is the default even when it is quarantined: serving another one in its
    place could bring back what was rolled back. Otherwise the default moves to a higher version only after
    that one was loaded and proven, so that the present one serves until then; where there is no present one
    it is the highest.
    """
    if any(r.ref.version == chosen for r in records):
        return chosen
    usable = [r for r in records if not r.quarantined or r.live is not None]
    present = next((r for r in usable if r.ref.version == current), None)
    proven = [r for r in usable if r.proven]
    if present is None:
        return _highest(proven or usable)
    return _highest([present, *(r for r in proven if _order(r) > _order(present))])


def candidate(records: Collection[Record], current: str) -> Record | None:
    """The version that would become the default if it were proven: the highest above the present one."""
    above = [r for r in records if not r.quarantined and not r.proven and _order(r) > version_key(current)]
    return max(above, key=_order, default=None)


def _highest(records: Collection[Record]) -> str:
    best = max(records, key=_order, default=None)
    return best.ref.version if best is not None else ""


def _order(record: Record) -> Key:
    return version_key(record.ref.version)
