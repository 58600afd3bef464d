"""Files of a phase: what is in them, and that nothing is left of one that could not be written."""

from __future__ import annotations

import csv
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from router.errors import ConfigError, ExperimentNotFound, FailedPrecondition, ResourceExhausted, StoreDown
from router.extensions.experiments import export as exporting
from router.extensions.experiments.assignment import unit_hash
from router.extensions.experiments.export import export
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.schema import VERSION, VIEWS
from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments.store.conftest import empty
from tests.extensions.experiments.store.helpers import START, WINDOW, experiment, exposed, outcome
from tests.extensions.experiments.store.postgres import Server, binaries

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    found = Server(where, "-c fsync=off")
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/experiments.db"
    return empty(request.getfixturevalue("server"))


@pytest.fixture
def store(url) -> Iterator[ExperimentStore]:
    """Two phases; in the first three units, four outcomes of which one is late."""
    found = ExperimentStore(url)
    found.create(experiment(phases=(START, START + 9000)))
    found.create(experiment("other"))
    shown = [exposed("u1", "r1", at=0.25), exposed("u2", "r2", "b", at=2), exposed("u3", "r3", "b")]
    found.expose([*shown, exposed("u1", "r8", phase=2, at=9000), exposed("u9", "r9", name="other")])
    late = outcome("r2", value=0.125, at=WINDOW + 9, key="late")
    found.record(
        [outcome("r1"), outcome("r3", value=0.1), late, outcome("r3", "ü=1", 5.0, key='a "quoted", ü\nkey')]
    )
    yield found
    found.close()


@pytest.fixture
def sqlite_store(tmp_path) -> Iterator[ExperimentStore]:
    found = ExperimentStore(f"sqlite:///{tmp_path}/experiments.db")
    found.create(experiment())
    yield found
    found.close()


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_outcomes_come_back_as_they_were(store, tmp_path):
    path = tmp_path / "o.csv"
    export(store, "experiments/x", 1, "outcomes", path)
    found = {row["key"]: row for row in rows_of(path)}
    assert len(found) == 4
    quoted, late = found['a "quoted", ü\nkey'], found["late"]
    assert (quoted["metric"], float(quoted["value"])) == ("ü=1", 5.0)
    assert (late["unit"], late["arm"], float(late["value"])) == ("u2", "b", 0.125)
    assert (late["counted"], quoted["counted"]) == ("false", "true")
    at = datetime.fromtimestamp(START + WINDOW + 9, UTC)
    assert late["time"] == at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert 0.1 in {float(row["value"]) for row in found.values()}  # the very same double


@pytest.mark.parametrize("what", VIEWS)
def test_a_file_is_of_one_snapshot_and_has_the_columns_of_its_view(store, url, tmp_path, what):
    other = ExperimentStore(url)

    def progress(rows: int) -> None:
        other.expose([exposed("u4", "r4", at=20)])
        other.record([outcome("r4", at=21)])

    done = export(store, "x", 1, what, tmp_path / "all.csv", progress)
    other.close()
    assert done.rows == {"units": 3, "outcomes": 4, "values": 2}[what]
    rows = rows_of(done.path)
    assert list(rows[0]) == [c.name for c in VIEWS[what].columns]
    assert "u4" not in {row.get("unit") for row in rows}
    assert export(store, "x", 1, "units", tmp_path / "after.csv").rows == 4


def test_nothing_in_a_phase_is_a_file_with_columns(store, tmp_path):
    done = export(store, "x", 2, "outcomes", tmp_path / "p.csv")
    assert done.rows == 0
    assert done.path.read_text().startswith("experiment,phase,unit,arm,metric")
    assert rows_of(done.path) == []


def test_the_last_phase_is_meant_where_none_is_said(store, tmp_path):
    done = export(store, "x", None, "units", tmp_path / "u.csv")
    assert [(row["phase"], row["unit"]) for row in rows_of(done.path)] == [("2", "u1")]


def test_a_url_does(store, url, tmp_path):
    assert export(url, "x", 1, "units", tmp_path / "u.csv").rows == 3


def test_what_is_not_there(store, tmp_path):
    store.create(experiment("draft", phases=()))
    for name, phase, reason in (
        ("nowhere", None, "'nowhere' not found"),
        ("x", 3, "phase 3 is not there, there are: 1, 2"),
        ("draft", None, "never started"),
    ):
        with pytest.raises(ExperimentNotFound, match=reason):
            export(store, name, phase, "units", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("what", "name", "error"),
    [
        ("users", "u.csv", "'users' cannot be exported; known are units, outcomes, values"),
        ("units", "u.xlsx", "must end with .csv"),
    ],
)
def test_what_cannot_be_done(sqlite_store, tmp_path, what, name, error):
    with pytest.raises(ConfigError, match=error):
        export(sqlite_store, "x", 1, what, tmp_path / name)


def test_a_url_with_a_mistake_makes_no_database(tmp_path):
    with pytest.raises(ConfigError, match="there is no such database of experiments"):
        export(f"sqlite:///{tmp_path}/none.db", "x", 1, "units", tmp_path / "u.csv")
    with pytest.raises(ConfigError, match="cannot be read; it looks like sqlite"):
        export("experiments.db", "x", 1, "units", tmp_path / "u.csv")
    with pytest.raises(StoreDown, match="cannot be reached"):
        export("postgresql://u@127.0.0.1:1/d", "x", 1, "units", tmp_path / "u.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_a_database_of_another_version_is_not_touched(store, url, tmp_path, version):
    with store._writing() as conn:
        conn.execute(tables.version.update().values(version=version))
    with pytest.raises(ConfigError, match=f"tables have version {version}, this program"):
        export(url, "x", 1, "units", tmp_path / "u.csv")
    with store.reading() as conn:
        assert conn.execute(tables.version.select()).scalar_one() == version


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_an_empty_database_stays_empty(url, tmp_path):
    with pytest.raises(ConfigError, match="it has no tables of lora-router"):
        export(url, "x", 1, "units", tmp_path / "u.csv")
    with pytest.raises(ConfigError, match="it has no tables of lora-router"):
        export(url, "x", 1, "units", tmp_path / "u.csv")


def test_a_file_of_something_else_stays_as_it_is(tmp_path):
    for content in (b"", b"mine" * 2000):
        (tmp_path / "x.db").write_bytes(content)
        with pytest.raises(ConfigError):
            export(f"sqlite:///{tmp_path}/x.db", "x", 1, "units", tmp_path / "u.csv")
        assert (tmp_path / "x.db").read_bytes() == content
        assert files(tmp_path) == ["x.db"]


def test_a_database_whose_server_was_killed(sqlite_store, tmp_path):
    """What is in the log is read, and afterwards there is a database and nothing beside it."""
    sqlite_store.expose([exposed("u", "r")])
    (tmp_path / "copy #1").mkdir()
    for end in ("", "-shm", "-wal"):
        left = (tmp_path / f"experiments.db{end}").read_bytes()
        (tmp_path / f"copy #1/x.db{end}").write_bytes(left)
    assert export(f"sqlite:///{tmp_path}/copy #1/x.db", "x", 1, "units", tmp_path / "u.csv").rows == 1
    assert files(tmp_path / "copy #1") == ["x.db"]


def test_a_store_that_is_only_read_writes_nothing(store, url):
    reader = ExperimentStore(url, migrate=False)
    assert reader.get("x").name == "x"
    assert reader.data("x", 1).responses == {"a": 1, "b": 2}
    with pytest.raises(RuntimeError, match="to be read only"):
        reader.salt("holdout")
    reader.close()


def test_a_file_that_is_there_stays(store, tmp_path):
    path = tmp_path / "u.csv"
    path.write_text("mine")
    with pytest.raises(FailedPrecondition, match=r"u\.csv is there already"):
        export(store, "x", 1, "units", path)
    assert path.read_text() == "mine"


def test_a_file_that_comes_meanwhile_stays(store, tmp_path):
    def progress(_rows: int) -> None:
        (tmp_path / "units.csv").write_text("mine")

    with pytest.raises(FailedPrecondition, match="is there already"):
        export(store, "x", 1, "units", tmp_path / "units.csv", progress)
    assert (tmp_path / "units.csv").read_text() == "mine"
    assert files(tmp_path) == ["units.csv"]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("experiments.db"))


def test_a_break_leaves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BATCH", 1)

    def progress(rows: int) -> None:
        if rows == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, "x", 1, "outcomes", tmp_path / "o.csv", progress)
    assert files(tmp_path) == []
    assert export(store, "x", 1, "outcomes", tmp_path / "o.csv").rows == 4  # and the connection is sound


def test_a_folder_that_is_not_there(sqlite_store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/u\.csv"):
        export(sqlite_store, "x", 1, "units", tmp_path / "nowhere/u.csv")


def fill(store: ExperimentStore, count: int) -> None:
    """Units written straight into the table."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {0})"
    name, no = "lower(hex(randomblob(16)))", "0"
    if store._engine.dialect.name == "postgresql":
        numbers, name, no = "WITH n AS (SELECT generate_series(1, {0}) AS i)", "md5(i::text)", "false"
    rows = f"SELECT i, {name}, 1, 'a', 1e9 + i / 8.0, 0, 1, 1, {no}, {no}, '' FROM n"
    with store._writing() as conn:
        conn.exec_driver_sql(f"INSERT INTO lora_router_units {numbers.format(count)} {rows}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr!r}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(sqlite_store, small_disk):
    fill(sqlite_store, 20_000)
    with pytest.raises(
        ResourceExhausted, match=r"the disk is full: more than 0\.\d MB are needed. Nothing was writ"
    ):
        export(sqlite_store, "x", 1, "units", small_disk / "u.csv")
    assert files(small_disk) == []


def test_a_limit_of_file_sizes(sqlite_store, tmp_path):
    """What a full disk is where nothing can be mounted."""
    fill(sqlite_store, 20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceExhausted, match="no file may be so large here"):
            export(sqlite_store, "x", 1, "units", tmp_path / "u.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []


GROWTH = """
import resource, sys
from pathlib import Path
from router.extensions.experiments import export
url, folder = sys.argv[1], Path(sys.argv[2])
export.BATCH = 5000
export.export(url, "x", 2, "units", folder / "few.csv")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert export.export(url, "x", 1, "units", folder / "all.csv").rows == 60_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_rows(store, url, tmp_path):
    with store._writing() as conn:
        for table in ("units", "outcomes", "values"):
            conn.exec_driver_sql(f"DELETE FROM lora_router_{table}")
    fill(store, 60_000)
    command = [sys.executable, "-c", GROWTH, url, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 30_000  # kB; with all rows at once it is above 60,000
    assert len({row["unit"] for row in rows_of(tmp_path / "all.csv")}) == 60_000


def test_the_hash_as_the_page_has_it_in_python():
    for unit in ("user-1", "Ünal 名", ""):
        assert hashlib.sha256(f"lora-router/unit\x1f{unit}".encode()).hexdigest()[:32] == unit_hash(unit)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_the_hash_as_the_page_has_it_in_postgresql(store):
    hashed = "left(encode(sha256(convert_to('lora-router/unit' || chr(31) || unit, 'UTF8')), 'hex'), 32)"
    query = f"""SELECT {hashed} FROM (VALUES ('user-1'), ('Ünal 名'), ('')) AS mine (unit)"""
    with store.reading() as conn:
        found = list(conn.exec_driver_sql(query).scalars())
    assert found == [unit_hash("user-1"), unit_hash("Ünal 名"), unit_hash("")]


def test_other_people_may_read_the_file_as_they_may_any(sqlite_store, tmp_path):
    before = os.umask(0o022)
    try:
        export(sqlite_store, "x", 1, "units", tmp_path / "u.csv")
    finally:
        os.umask(before)
    assert (tmp_path / "u.csv").stat().st_mode & 0o777 == 0o644
