"""No batch reads a whole table: what a batch costs must not grow with what is kept."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from router.experiments.model import Disagreement, JudgedPair, Kind, MetricSpec
from router.experiments.store import database
from tests.experiments.store.helpers import (
    START,
    act,
    experiment,
    exposed,
    outcome,
    unit_outcome,
    with_secondary,
)

COUNTED = "INDEX lora_router_waiting_received"  # outcomes that wait, once a minute and as many as may
LARGE = ("units", "exposures", "outcomes", "values", "disagreements", "pairs")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_every_large_table_is_searched_by_an_index(sql_store):
    found: dict[str, tuple] = {}

    def keep(_conn, _cursor, statement, parameters, *_rest):
        if statement.startswith(("SELECT", "DELETE")):
            found[statement] = parameters

    event.listen(sql_store._engine, "after_cursor_execute", keep)
    past = MetricSpec("n", Kind.MEAN, covariate=True)
    for name in ("x", "y"):
        sql_store.create(experiment(name, past))
    sql_store.record([outcome("r1", "n"), unit_outcome("u", "n", at=-5)])
    sql_store.disagree([Disagreement("x", 1, "u", "r1", START, "base", "m")])
    sql_store.expose([exposed("u", "r1"), exposed("v", "r2")])
    sql_store.expose([exposed("u", "r1", name="y"), exposed("u", "r2", name="y")])
    sql_store.record([outcome("r1", "n"), unit_outcome("u", "n"), unit_outcome("u", "n", at=-5)])
    sql_store.data("x", 1, only_differing=True)
    sql_store.pairs([JudgedPair("x", 1, "b", "r1", START, 1, {}, "u")])
    sql_store.paired("x", 1)
    later = MetricSpec("later", Kind.MEAN, covariate=True)
    sql_store.replace(with_secondary(sql_store.get("x"), later), act())
    event.remove(sql_store._engine, "after_cursor_execute", keep)
    assert len(found) > 20
    with database.reading(sql_store._engine) as conn:
        plans = {
            text: [step[3] for step in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)]
            for text, parameters in found.items()
        }
    scans = [(t, s) for t, steps in plans.items() for s in steps if s.startswith("SCAN lora_router_")]
    scans = [(t, s) for t, s in scans if COUNTED not in s]
    assert [(t, s) for t, s in scans if s.split("_")[2].split()[0] in LARGE] == []
