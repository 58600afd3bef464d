"""Old databases are taken up to date and go on as if they were new; newer ones are refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, inspect, select, text, update

from router.errors import ConfigError, StoreDown
from router.experiments.model import Kind, MetricSpec
from router.experiments.stats.moments import Moments
from router.experiments.store import database, session, tables
from router.experiments.store import schema as migrating
from router.experiments.store.database import parse_url
from router.experiments.store.schema import STEPS, VERSION, VIEWS, migrate
from router.experiments.store.store import ExperimentStore
from tests.experiments.store.helpers import act, experiment, exposed, outcome, with_secondary


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
ADDED = {
    "units": ["segments"],
    "pairs": ["unit"],
    "outcomes": ["came"],
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
        tables.segment_values.drop(conn)
        conn.exec_driver_sql(
            "CREATE INDEX lora_router_pairs_result ON lora_router_pairs (phase, arm, result)"
        )
        for name, columns in ADDED.items():
            for column in columns:
                conn.exec_driver_sql(f"ALTER TABLE lora_router_{name} DROP COLUMN {column}")
        for table in tables.metadata.sorted_tables:
            if table is tables.segment_values:
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
    with pytest.raises(ConfigError, match="have version 1, this program reads 2: start the server"):
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
