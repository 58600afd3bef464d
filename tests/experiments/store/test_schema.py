"""Old tables are brought up to date, and views stay as they are."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import inspect, update

from router.errors import ConfigError, StoreDown
from router.experiments.model import Aggregate, Kind, MetricSpec, SegmentSpec, ShadowPair
from router.experiments.store import schema as migrating
from router.experiments.store import schema as views
from router.experiments.store import tables
from router.experiments.store.schema import VERSION, VIEWS, ColumnType, ViewColumn, make_views, migrate
from router.experiments.store.store import ExperimentStore
from router.shared import database
from router.shared.database import parse_url
from tests.experiments.store.helpers import (
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


PAGE = Path(__file__).parents[3] / "docs/experiments-store.md"
MINUTES = MetricSpec("minutes", Kind.MEAN, aggregate=Aggregate.SUM, covariate=True)
postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)
PLACE = {"experiment": "x", "phase": 1}


@pytest.fixture
def viewed(sql_store) -> ExperimentStore:
    """A store with the views; an experiment with three units, and one that is deleted."""
    sql_store.create(experiment("x", MINUTES, segments=(SegmentSpec("plan"),)))
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
    sql_store.pairs([ShadowPair("x", 1, "b", "r1", START + 1, -1, {"agreed": 0.5}, "u1")])
    sql_store.delete("gone")
    return sql_store


def make(store: ExperimentStore, *first: str) -> None:
    with store._writing() as conn:
        for statement in first:
            conn.exec_driver_sql(statement)
        make_views(conn)


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
        "stage": "",
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


def test_pairs(viewed):
    (found,) = read(viewed, "pairs", "response_id")
    told_of = {"arm": "b", "response_id": "r1", "time": START + 1, "result": -1, "numbers": '{"agreed": 0.5}'}
    assert found == PLACE | told_of | {"unit": "u1"}


def test_columns_are_those_that_are_told(viewed):
    for what, view in VIEWS.items():
        with viewed.reading() as conn:
            there = conn.exec_driver_sql(f"SELECT * FROM {view.name}").keys()
        assert list(there) == [c.name for c in view.columns], what
        assert all(c.means for c in view.columns)


@pytest.mark.slow
def test_making_them_again_changes_nothing(viewed):
    before = definitions(viewed)
    make(viewed)
    assert definitions(viewed) == before
    assert len(before) == len(VIEWS)


def definitions(store: ExperimentStore) -> list:
    """With PostgreSQL's number of the last change to each."""
    postgres = "SELECT relname, oid, xmin::text FROM pg_class WHERE relkind = 'v' AND relname ~ '^lora'"
    sqlite = "SELECT name, sql, schema_version FROM sqlite_master, pragma_schema_version WHERE type = 'view'"
    with store.reading() as conn:
        query = postgres if conn.dialect.name == "postgresql" else sqlite
        return sorted(tuple(r) for r in conn.exec_driver_sql(query))


def older(monkeypatch, **columns: str) -> None:
    """As if this program were one whose view of units has these columns only: name -> the table's."""
    view = VIEWS["units"]
    made = tuple(ViewColumn(n, ColumnType.TEXT, "", tables.units.c[c]) for n, c in columns.items())
    monkeypatch.setattr(views, "VIEWS", {**VIEWS, "units": replace(view, columns=made)})


@pytest.mark.parametrize(
    "columns", [{"first_column": "unit"}, {"experiment": "arm"}], ids=["another name", "another type"]
)
def test_a_definition_that_changed_is_made_anew(viewed, monkeypatch, columns):
    with monkeypatch.context() as patched:
        older(patched, **columns)
        make(viewed)
        assert list(read(viewed, "units")[0]) == list(columns)
    make(viewed)
    assert list(read(viewed, "units")[0]) == [c.name for c in VIEWS["units"].columns]


@postgresql
def test_what_was_granted_stays_when_columns_are_added(viewed, monkeypatch):
    fewer = replace(VIEWS["units"], columns=VIEWS["units"].columns[:-1])
    with viewed._writing() as conn:
        conn.exec_driver_sql("DROP VIEW lora_router_v_units")
        monkeypatch.setattr(views, "VIEWS", {"units": fewer})
        make_views(conn)
        conn.exec_driver_sql("GRANT SELECT ON lora_router_v_units TO pg_monitor")
        conn.exec_driver_sql("CREATE VIEW mine AS SELECT arm FROM lora_router_v_units")
        monkeypatch.setattr(views, "VIEWS", VIEWS)
        make_views(conn)
        allowed = "SELECT has_table_privilege('pg_monitor', 'lora_router_v_units', 'SELECT')"
        assert conn.exec_driver_sql(allowed).scalar_one() is True
    assert "segments" in read(viewed, "units")[0]


@postgresql
def test_a_view_that_a_view_of_someone_else_reads_stops_no_server(viewed, monkeypatch, caplog):
    with viewed._writing() as conn:
        conn.exec_driver_sql("CREATE VIEW mine AS SELECT arm FROM lora_router_v_units")
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        older(patched, first_column="unit")
        make(viewed)
    assert "lora_router_v_units stays as it was: drop the views that read it" in caplog.text
    assert "arm" in read(viewed, "units")[0]


@postgresql
def test_postgresql_tells_what_they_are(viewed):
    with viewed.reading() as conn:
        query = "SELECT col_description('lora_router_v_units'::regclass, 5)"
        assert conn.exec_driver_sql(query).scalar_one() == "unix seconds: when its window began"
        query = "SELECT obj_description('lora_router_v_units'::regclass)"
        assert conn.exec_driver_sql(query).scalar_one().startswith("One row: a unit that was exposed")


@postgresql
def test_what_the_server_refuses_is_not_hidden(viewed):
    rights = ("USAGE ON SCHEMA public", "SELECT ON ALL TABLES IN SCHEMA public")
    with viewed._writing() as conn:
        for right in rights:
            conn.exec_driver_sql(f"GRANT {right} TO pg_monitor")
        conn.exec_driver_sql("DROP VIEW lora_router_v_units")
    with pytest.raises(StoreDown, match="grant the user CREATE"):
        make(viewed, "SET LOCAL ROLE pg_monitor")


def page_of(view: views.View) -> str:
    """A view as the page has it."""
    lines = (f"| `{c.name}` | {c.holds} | {c.means} |" for c in view.columns)
    return "\n".join((f"`{view.name}`: {view.means}.", "", "| column | | |", "|---|---|---|", *lines))


@pytest.mark.parametrize("what", VIEWS)
def test_the_page_has_them(what):
    page = PAGE.read_text()
    assert page_of(VIEWS[what]) in page
