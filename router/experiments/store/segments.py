"""Which value of each of the plan's labels a unit has.

The first exposure of a unit fixes its values, in the transaction that writes it, so that servers agree.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import TypeAlias

from sqlalchemy import select

from router.experiments.model import MAX_SEGMENT_VALUES, NO_VALUE, OTHER_VALUE, Exposure, SegmentSpec
from router.experiments.store.bulk import Clash
from router.experiments.store.series import PhaseInfo
from router.experiments.store.session import Session
from router.experiments.store.tables import segment_values

LONGEST = 256  # characters of a value that is told apart: it is part of a key
Known: TypeAlias = dict[tuple[int, str], set[str]]  # phase and label -> values told apart


def segments_of(session: Session, first: Sequence[tuple[PhaseInfo, Exposure]]) -> list[str]:
    """The column `segments` of new units, by their first exposures in order. Keeps new values."""
    phases = {info.id for info, _ in first if info.segments}
    if not phases:
        return [""] * len(first)
    of, known = segment_values.c, Known()
    query = select(of.phase, of.label, of.value).where(session.bulk.among(of.phase, phases))
    for phase, label, value in session.conn.execute(query):
        known.setdefault((phase, label), set()).add(value)
    fresh: list[tuple[int, str, str]] = []
    found = [_told(info, e, known, fresh) for info, e in first]
    session.bulk.write(session.conn, segment_values, fresh, Clash.KEEP)
    return found


def _told(info: PhaseInfo, e: Exposure, known: Known, fresh: list[tuple[int, str, str]]) -> str:
    if not info.segments:
        return ""
    found = {}
    for segment in info.segments:
        there = known.setdefault((info.id, segment.label), set())
        value = found[segment.label] = value_of(segment, e, there)
        if not segment.values and value not in there | {NO_VALUE, OTHER_VALUE}:
            there.add(value)
            fresh.append((info.id, segment.label, value))
    return json.dumps(found, ensure_ascii=False)


def value_of(segment: SegmentSpec, e: Exposure, there: Collection[str]) -> str:
    """The value of one label; `there` are those that are told apart so far where none are named."""
    if segment.label not in e.segments:
        return NO_VALUE
    value = e.segments[segment.label].replace("\0", "")  # PostgreSQL has no NUL
    if segment.values:
        return value if value in segment.values else OTHER_VALUE
    room = len(there) < MAX_SEGMENT_VALUES and len(value) <= LONGEST
    return value if value in there or room else OTHER_VALUE
