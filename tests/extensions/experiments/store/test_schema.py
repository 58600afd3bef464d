"""Tables of another version are refused, and views show what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import inspect, update

from router.errors import ConfigError, StoreDown
from router.extensions.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec
from router.extensions.experiments.store import schema as migrating
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.schema import VERSION, VIEWS, View, migrate
from router.extensions.experiments.store.store import ExperimentStore
from router.shared import database
from router.shared.database import parse_url
from tests.extensions.experiments.store.helpers import (
    START,
    WINDOW,
    experiment,
    exposed,
    outcome,
    row,
    unit_outcome,
)


@pytest.fixture
def engine(url):
    found = database.make_engine(parse_url(url))
    yield found
    found.dispose()


def version_of(engine) -> int:
    with database.reading(engine) as conn:
        return conn.execute(tables.version.select()).scalar_one()


def test_a_new_database_is_made_whole_and_only_once(engine):
    for _ in range(2):
        with database.writing(engine) as conn:
            migrate(conn)
    assert version_of(engine) == VERSION
    assert set(inspect(engine).get_table_names()) == set(tables.metadata.tables)
    assert all(name.startswith("lora_router_") for name in tables.metadata.tables)


def test_a_newer_database_is_refused(url, engine):
    ExperimentStore(url).close()
    with database.writing(engine) as conn:
        conn.execute(update(tables.version).values(version=VERSION + 1))
    with pytest.raises(ConfigError, match=f"have version {VERSION + 1}, this program knows {VERSION}"):
        ExperimentStore(url)


def test_a_database_from_before_is_refused_with_the_way_out(url, engine):
    ExperimentStore(url).close()
    with database.writing(engine) as conn:
        conn.execute(update(tables.version).values(version=6))
    for migrate_it in (True, False):
        with pytest.raises(ConfigError, match=r"before 0\.3\. Export them with that one"):
            ExperimentStore(url, migrate=migrate_it)


def test_a_server_that_comes_back_newer_is_down(url, monkeypatch):
    store = ExperimentStore(url)
    store._ready = False  # as if it had not been reached at the start
    monkeypatch.setattr(migrating, "VERSION", 0)
    with pytest.raises(StoreDown, match="newer lora-router"):
        store.list()
    store.close()


def test_other_tables_are_left_alone(url, engine):
    with database.writing(engine) as conn:
        conn.exec_driver_sql("CREATE TABLE experiments (mine INTEGER)")
    store = ExperimentStore(url)
    store.create(experiment())
    store.close()
    with database.reading(engine) as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM experiments").scalar_one() == 0


PAGE = Path(__file__).parents[4] / "docs/experiments-store.md"
MINUTES = MetricSpec("minutes", Kind.MEAN, aggregate=Aggregate.SUM, covariate=True)
PLACE = {"experiment": "x", "phase": 1}


@pytest.fixture
def viewed(sql_store) -> ExperimentStore:
    """A store with the views; an experiment with three units, and one that is deleted."""
    sql_store.create(experiment("x", MINUTES, segments=(SegmentSpec("plan", ("frei ü",)),)))
    sql_store.create(experiment("gone"))
    shown = [
        exposed("u1", "r1", segments={"plan": "frei ü", "other": "x"}),
        exposed("u1", "r2", "b", at=5, degraded="no slot"),
        exposed("u2", "r3", "b"),
    ]
    sql_store.expose([*shown, exposed("u3", "r4", "b", at=10), exposed("u1", "r9", name="gone")])
    said_of = [
        outcome("r1", "minutes", 2.0),
        outcome("r2", "minutes", 3.0, at=2),
        outcome("r3", "minutes", at=WINDOW + 9),
    ]
    sql_store.record(
        [*said_of, unit_outcome("u3", "minutes", 4.0, at=20, name="x"), outcome("r9"), outcome("r1", "other")]
    )
    sql_store.delete("gone")
    return sql_store


def read(store: ExperimentStore, what: str, *names: str) -> list[dict]:
    """Rows in the order of these columns."""
    with store.reading() as conn:
        found = conn.exec_driver_sql(f"SELECT * FROM {VIEWS[what].name}").mappings().all()
    return sorted((dict(r) for r in found), key=lambda r: [r[name] for name in names])


def test_units(viewed):
    one, two, three = read(viewed, "units", "unit")
    assert one == PLACE | {
        "unit": "u1",
        "arm": "a",
        "first_exposed": START,
        "answers": 2,
        "responses": 2,
        "degraded": True,
        "crossed": True,
        "segments": '{"plan": "frei ü"}',
    }
    assert (two["unit"], two["arm"], two["crossed"]) == ("u2", "b", False)
    assert (three["unit"], three["first_exposed"]) == ("u3", START + 10)


def test_outcomes(viewed):
    first, second, late, of_unit, unread = read(viewed, "outcomes", "metric", "unit", "value")
    assert first == PLACE | {
        "unit": "u1",
        "arm": "a",
        "metric": "minutes",
        "value": 2.0,
        "time": START + 1,
        "counted": True,
        "key": first["key"],
        "response_id": "r1",
    }
    assert (second["value"], second["arm"]) == (3.0, "a")
    assert (late["unit"], bool(late["counted"])) == ("u2", False)
    assert (of_unit["unit"], of_unit["response_id"], bool(of_unit["counted"])) == ("u3", "", True)
    assert unread["metric"] == "other"


def test_values_are_those_that_the_sums_are_made_of(viewed):
    found = read(viewed, "values", "unit", "metric")
    assert [(r["unit"], r["metric"], r["n"], r["total"]) for r in found] == [
        ("u1", "minutes", 2, 5.0),
        ("u3", "minutes", 1, 4.0),
    ]
    assert (found[0]["largest"], found[0]["last"], found[0]["before_n"]) == (3.0, 3.0, 0)
    for arm in "ab":
        units, total, _ = row(viewed, "minutes", arm)
        of_arm = [r for r in found if r["arm"] == arm]
        assert (len(of_arm), sum(r["total"] for r in of_arm)) == (units, total)


def test_a_unit_with_nothing_but_a_past_has_no_largest_and_no_last(sql_store):
    sql_store.create(experiment("x", MINUTES))
    sql_store.record([unit_outcome("u1", "minutes", 7.0, at=-50)])
    sql_store.expose([exposed("u1", "r1")])
    (found,) = read(sql_store, "values", "unit")
    assert (found["n"], found["total"], found["before_n"], found["before_total"]) == (0, 0.0, 1, 7.0)
    assert found["largest"] is None
    assert found["last"] is None


def test_columns_are_those_that_are_told(viewed):
    for what, view in VIEWS.items():
        with viewed.reading() as conn:
            there = conn.exec_driver_sql(f"SELECT * FROM {view.name}").keys()
        assert list(there) == [c.name for c in view.columns], what
        assert all(c.means for c in view.columns)


def page_of(view: View) -> str:
    """A view as the page has it."""
    lines = (f"| `{c.name}` | {c.holds} | {c.means} |" for c in view.columns)
    return "\n".join((f"`{view.name}`: {view.means}.", "", "| column | | |", "|---|---|---|", *lines))


@pytest.mark.parametrize("what", VIEWS)
def test_the_page_has_them(what):
    page = PAGE.read_text()
    assert page_of(VIEWS[what]) in page
