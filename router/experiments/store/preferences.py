"""What people preferred of two answers to one prompt, blind: kept once for a pair of answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Double, case, func, insert, literal_column, select

from router.experiments.model import Preference
from router.experiments.store.series import PairCounts, PreferenceCounts
from router.experiments.store.tables import preferences


def keep_preference(conn: Connection, one: Preference) -> bool:
    """False where that answer was compared before: the first time counts."""
    of = preferences.c
    if conn.execute(select(of.time).where(of.response_id == one.response_id)).scalar() is not None:
        return False
    row = (one.response_id, one.first, one.second, one.time, one.result, one.both_bad, one.unit)
    conn.execute(insert(preferences).values(row))
    return True


def count_preferences(conn: Connection) -> tuple[PreferenceCounts, ...]:
    """By pair of versions, by name. `wins` are the second one's."""
    of = preferences.c
    results = (func.sum(case((of.result == result, 1), else_=0)) for result in (1, -1, 0))
    won, lost, tied = (
        total.label(name) for total, name in zip(results, ("won", "lost", "tied"), strict=True)
    )
    bad = func.sum(case((of.both_bad, 1), else_=0)).label("bad")
    query = select(of.first, of.second, won, lost, tied, bad).group_by(of.first, of.second, of.unit)
    by_unit = query.subquery().c
    decisive = by_unit.won + by_unit.lost
    share = case((decisive > 0, by_unit.won * literal_column("1.0", Double) / decisive), else_=0.0)
    sums = (by_unit.won, by_unit.lost, by_unit.tied, by_unit.bad, case((decisive > 0, 1), else_=0), share)
    pair = (by_unit.first, by_unit.second)
    return tuple(_counted(conn.execute(select(*pair, *map(func.sum, sums)).group_by(*pair))))


def _counted(rows: Iterable[Any]) -> list[PreferenceCounts]:
    found = [
        PreferenceCounts(
            first, second, PairCounts(int(won), int(lost), int(tied), int(units), float(share)), int(bad)
        )
        for first, second, won, lost, tied, bad, units, share in rows
    ]
    return sorted(found, key=lambda one: (one.first, one.second))  # databases sort text in their own ways
