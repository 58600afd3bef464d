"""Old tables are brought up to date, and views stay as they are."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, inspect, select, text, update

from router.errors import ConfigError, StoreDown
from router.experiments.model import Aggregate, Kind, Lifecycle, MetricSpec, SegmentSpec, ShadowPair
from router.experiments.stats.moments import Moments
from router.experiments.store import schema as migrating
from router.experiments.store import schema as views
from router.experiments.store import session, tables
from router.experiments.store.schema import STEPS, VERSION, VIEWS, ColumnType, ViewColumn, make_views, migrate
from router.experiments.store.series import PhaseInfos
from router.experiments.store.store import ExperimentStore
from router.shared import database
from router.shared.database import parse_url
from tests.experiments.store.helpers import (
    GOOD,
    START,
    WINDOW,
    act,
    experiment,
    exposed,
    outcome,
    row,
    unit_outcome,
    with_secondary,
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


def test_every_step_is_there():
    assert sorted(STEPS) == list(range(2, VERSION + 1))


def test_steps_run_in_order_once(engine, monkeypatch):
    done = []
    steps = {VERSION + i: lambda conn, i=i: done.append(i) for i in (1, 2, 3)}
    with database.writing(engine) as conn:
        migrate(conn)
    monkeypatch.setattr(migrating, "STEPS", steps)
    for newest in (VERSION + 2, VERSION + 2, VERSION + 3):
        monkeypatch.setattr(migrating, "VERSION", newest)
        with database.writing(engine) as conn:
            migrate(conn)
    assert done == [1, 2, 3]
    assert version_of(engine) == VERSION + 3


def test_a_step_that_fails_changes_nothing(engine, monkeypatch):
    def fails(conn):
        conn.exec_driver_sql("CREATE TABLE half (n INTEGER)")
        raise RuntimeError("no")

    with database.writing(engine) as conn:
        migrate(conn)
    monkeypatch.setattr(migrating, "STEPS", {VERSION + 1: fails})
    monkeypatch.setattr(migrating, "VERSION", VERSION + 1)
    with pytest.raises(RuntimeError), database.writing(engine) as conn:
        migrate(conn)
    assert version_of(engine) == VERSION
    assert "half" not in inspect(engine).get_table_names()


def test_a_newer_database_is_refused(url, engine):
    ExperimentStore(url).close()
    with database.writing(engine) as conn:
        conn.execute(update(tables.version).values(version=VERSION + 1))
    with pytest.raises(ConfigError, match=f"have version {VERSION + 1}, this program knows {VERSION}"):
        ExperimentStore(url)


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


DATA = Path(__file__).parent / "data"
SAID = json.loads((DATA / "version1.json").read_text())
LATER = (tables.segment_values, tables.preferences, tables.identity)  # than version 1
ADDED = {
    "units": ["segments"],
    "pairs": ["unit"],
    "outcomes": ["came", "stage"],
    "sums": [f"c{i}" for i in range(20)],
}


def fill(url: str, path: Path) -> None:
    """The tables as version 1 had them, with its rows."""
    old = create_engine(f"sqlite:///{path}")
    sqlite3.connect(path).executescript((DATA / "version1.sql").read_text()).close()
    if not url.startswith("sqlite"):
        _fill_postgres(url, old)
    old.dispose()


def _fill_postgres(url: str, old) -> None:
    new = create_engine(parse_url(url))
    with new.begin() as conn, old.begin() as rows:
        tables.metadata.create_all(conn)
        for later in LATER:
            later.drop(conn)
        conn.exec_driver_sql(
            "CREATE INDEX lora_router_pairs_result ON lora_router_pairs (phase, arm, result)"
        )
        for name, columns in ADDED.items():
            for column in columns:
                conn.exec_driver_sql(f"ALTER TABLE lora_router_{name} DROP COLUMN {column}")
        for table in tables.metadata.sorted_tables:
            if table in LATER:
                continue
            gone = ADDED.get(table.name.removeprefix(tables.PREFIX), [])
            kept = [c for c in table.c if c.name not in gone]
            found = rows.execute(select(*kept)).mappings().all()
            if found:
                conn.execute(insert(table), [dict(r) for r in found])
        for table in (tables.experiments, tables.phases, tables.audit):
            serial = f"pg_get_serial_sequence('{table.name}', 'id')"
            conn.execute(text(f"SELECT setval({serial}, (SELECT max(id) FROM {table.name}))"))
    new.dispose()


@pytest.fixture
def old(url, tmp_path) -> str:
    """The URL of a database of version 1."""
    fill(url, tmp_path / "experiments.db")
    return url


@pytest.fixture
def store(old) -> Iterator[ExperimentStore]:
    found = ExperimentStore(old)
    yield found
    found.close()


def totals(store: ExperimentStore, name: str) -> dict[str, list[float]]:
    """As the old code was asked."""
    found: dict[str, Moments] = {}
    for bucket in store.data(name, 1).buckets:
        for metric, sums in bucket.moments.items():
            key = f"{bucket.arm}/{metric}"
            found[key] = found[key].merge(sums) if key in found else sums
    return {key: [m.n, *m.sums, *m.products] for key, m in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split", "cuped", "routers"])
def test_it_says_the_same(store, name):
    found = totals(store, name)
    assert found.keys() == SAID[name].keys()
    for key, wanted in SAID[name].items():
        assert found[key] == pytest.approx(wanted), key


def test_it_says_the_same_of_what_is_no_sum(store):
    assert sum(b.exposed for b in store.data("routers", 1, only_differing=True).buckets) == SAID["triggered"]
    wins, losses, ties = SAID["pairs"]["new"]
    assert store.paired("shadow", 1) == {"new": (wins, losses, ties, wins + losses, float(wins))}
    assert store.data("split", 1).responses == {"new": 3, "old": 36}
    assert [act.act for act in store.trail("split")] == ["create"]


def test_third_powers_are_those_of_its_units(store):
    """From the units' values, by another way."""
    of, unit = tables.values.c, tables.units.c
    query = select(unit.arm, of.total).join_from(tables.units, tables.values, of.unit_id == unit.id)
    with store.reading() as conn:
        rows = conn.execute(query.where(unit.phase == 1, of.metric == "seconds", of.n > 0)).all()
    assert len(rows) > 10
    cubes: dict[str, float] = {}
    for bucket in store.data("split", 1).buckets:
        cubes[bucket.arm] = cubes.get(bucket.arm, 0.0) + bucket.moments["seconds"].cubes[0]
    for arm in ("old", "new"):
        assert cubes[arm] == pytest.approx(sum(v**3 for a, v in rows if a == arm))


def test_it_is_the_same_as_a_new_one(store, tmp_path):
    """Columns and indexes; and opening it again changes nothing."""
    before = totals(store, "split")
    store._ready = False
    assert totals(store, "split") == before
    new = ExperimentStore(f"sqlite:///{tmp_path}/new.db")
    if store._engine.dialect.name == "sqlite":
        query = "SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY 1"
        columns = """SELECT m.name, c.name, c.type, c."notnull", c.pk
            FROM sqlite_master m, pragma_table_info(m.name) c"""
        shape = []
        for each in (store, new):
            with each.reading() as conn:
                shape.append([sorted(map(tuple, conn.exec_driver_sql(q))) for q in (query, columns)])
        assert shape[0] == shape[1]
    new.close()
    with store.reading() as conn:
        for view in VIEWS.values():
            conn.exec_driver_sql(f"SELECT * FROM {view.name}").all()


def test_it_goes_on(store):
    store.expose([exposed("new unit", "r", "old", at=1.7e9 - 1e6 + 700, name="split", phase=2)])
    csat = MetricSpec("completion_tokens", Kind.MEAN)
    store.replace(with_secondary(store.get("cuped"), csat), act("cuped"))
    assert totals(store, "cuped")["old/completion_tokens"][0] > 5
    assert totals(store, "cuped")["old/score"] == pytest.approx(SAID["cuped"]["old/score"])
    before = totals(store, "cuped")["old/score"][0]
    store.record([outcome("cuped-0-0", "score", 1.0, at=1.7e9 + 9020 - 1e6)])
    assert totals(store, "cuped")["old/score"][0] == before


def test_a_running_phase_is_read_early_from_now_on(url):
    """As a database has it before that version: phases with stretches by their windows, and nothing early."""
    errors = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.1)
    store = ExperimentStore(url)
    store.create(experiment("x", GOOD, errors, window=86_400.0))
    store.create(replace(experiment("y", GOOD, errors), state=Lifecycle.STOPPED))
    store.expose([exposed("u", "r1", at=3500.0), exposed("v", "r2"), exposed("w", "r3")])
    store.record([outcome("r1", "error", at=3600.0), outcome("r2", "error", at=700.0)])
    store.record([outcome("r3", "error", 0.0, at=5.0)])
    before = store.data("x", 1)
    store.close()
    engine = database.make_engine(parse_url(url))
    with database.writing(engine) as conn:
        bulk = database.bulk_for(conn.dialect.name)
        migrating._read_early(session.WriteSession(conn, bulk, PhaseInfos(bulk)))
    engine.dispose()
    store = ExperimentStore(url)
    store.expose([exposed("z", "r4", at=4000.0)])
    store.record([outcome("r4", "error", at=4001.0)])
    assert row(store, "error@600") == (3, 2.0)
    assert row(store, "error") == (4, 3.0)
    assert store.data("x", 1).buckets[0].start == before.buckets[0].start
    assert store.get("y").phases[0].early == 0
    store.close()


def as_bandit(url: str) -> None:
    """As if the experiment had been one in version 1."""
    engine, of = create_engine(parse_url(url)), tables.experiments.c
    with engine.begin() as conn:
        document = conn.execute(select(of.document).where(of.name == "cuped")).scalar_one()
        bandit = document.replace('"mode":"split"', '"mode":"bandit"').replace("3600.0", "60.0")
        assert bandit != document
        conn.execute(tables.experiments.update().where(of.name == "cuped").values(document=bandit))
    engine.dispose()


def test_a_bandit_is_read_epoch_by_epoch(old, monkeypatch):
    as_bandit(old)
    monkeypatch.setattr(session, "CHUNK", 7)
    store = ExperimentStore(old)
    data = store.data("cuped", 1)
    assert {b.seconds for b in data.buckets} == {60.0}
    starts = {b.start - 1_700_009_000 for b in data.buckets}
    assert starts == {60.0 * ((10 + 30 * i) // 60) for i in range(20)}
    assert sum(b.exposed for b in data.buckets) == 20
    for key, wanted in SAID["cuped"].items():
        assert totals(store, "cuped")[key] == pytest.approx(wanted), key
    store.expose([exposed("one more", "r-more", "old", at=9065 + 1.699e9, name="cuped")])
    again = store.data("cuped", 1).buckets
    assert sum(b.exposed for b in again if b.start == 1_700_009_060) == 1 + sum(
        b.exposed for b in data.buckets if b.start == 1_700_009_060
    )
    store.close()


def test_a_step_that_breaks_leaves_the_old_database(old, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(session, "_resum", broken)
        with pytest.raises(RuntimeError):
            ExperimentStore(old)
    with pytest.raises(ConfigError, match=f"have version 1, this program reads {VERSION}: start the server"):
        ExperimentStore(old, migrate=False)
    store = ExperimentStore(old)
    assert totals(store, "split").keys() == SAID["split"].keys()
    store.close()


@pytest.mark.slow
def test_reading_only_changes_nothing(old, tmp_path):
    engine = database.make_engine(parse_url(old))
    with pytest.raises(ConfigError, match="version 1"):
        ExperimentStore(old, migrate=False)
    with database.reading(engine) as conn:
        assert conn.execute(select(tables.version.c.version)).scalar_one() == 1
    engine.dispose()


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
        "differed": False,
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
