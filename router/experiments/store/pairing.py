"""Judged pairs of shadow arms."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from router.experiments.model import Pair
from router.experiments.store.bulk import Clash
from router.experiments.store.series import PhaseInfo
from router.experiments.store.session import Session
from router.experiments.store.tables import pairs as table


def keep_pairs(session: Session, found: Sequence[Pair]) -> None:
    """The same arm and response again changes nothing."""
    infos = session.phases.named(session.conn, {p.experiment for p in found})
    rows = {}
    for p in reversed(found):
        if info := infos.get((p.experiment, p.phase)):
            key = (info.id, p.arm, p.response_id)
            rows[key] = (*key, p.time, p.result, json.dumps(dict(p.numbers)))
    session.bulk.write(session.conn, table, (rows[key] for key in sorted(rows)), Clash.KEEP)


def count_pairs(conn: Connection, info: PhaseInfo) -> dict[str, tuple[int, int, int]]:
    """Arm -> wins, losses, ties."""
    of = table.c
    query = select(of.arm, of.result, func.count()).where(of.phase == info.id).group_by(of.arm, of.result)
    found: dict[str, dict[int, int]] = {}
    for arm, result, n in conn.execute(query):
        found.setdefault(arm, {})[result] = n
    return {arm: (n.get(1, 0), n.get(-1, 0), n.get(0, 0)) for arm, n in sorted(found.items())}
