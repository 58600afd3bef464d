"""A database that is deleted or replaced while it is open: nothing is acknowledged that is not kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from router.errors import StoreReplaced
from router.experiments.model import Accepted
from router.experiments.store.store import ExperimentStore
from router.shared.database import parse_url
from tests.experiments.store.conftest import empty
from tests.experiments.store.helpers import experiment, exposed, outcome, row


def opened(path: Path) -> ExperimentStore:
    """With an experiment and a unit that has answered."""
    store = ExperimentStore(f"sqlite:///{path}")
    store.create(experiment())
    store.expose([exposed("u", "r")])
    assert store.record([outcome("r", key="first")]) == (Accepted.COUNTED,)
    return store


def copied(path: Path, to: Path) -> Path:
    """A whole copy, as of now."""
    with sqlite3.connect(path) as source, sqlite3.connect(to) as target:
        source.backup(target)
    return to


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experiments.db"


def refused(store: ExperimentStore, words: str) -> None:
    """Neither written nor read, at every try."""
    for _ in range(2):
        with pytest.raises(StoreReplaced, match=words):
            store.record([outcome("r", key="second")])
        with pytest.raises(StoreReplaced, match=words):
            store.list()


def goes_on(store: ExperimentStore) -> None:
    """With everything from before."""
    assert store.record([outcome("r", key="first"), outcome("r", key="second")]) == (
        Accepted.DUPLICATE,
        Accepted.COUNTED,
    )
    assert row(store) == (1, 1.0)
    store.close()


def test_a_deleted_file_that_is_put_back(path: Path) -> None:
    store = opened(path)
    path.rename(path.with_name("elsewhere"))
    refused(store, "was deleted under the server: put it back, or restart the server")
    assert not path.exists()
    path.with_name("elsewhere").rename(path)
    goes_on(store)


@pytest.mark.parametrize("other", ["an empty file", "another store", "another program's"])
def test_another_file_in_its_place(path: Path, other: str) -> None:
    store, new = opened(path), path.with_name("new.db")
    if other == "another store":
        opened(new).close()
    elif other == "an empty file":
        new.touch()
    else:
        with sqlite3.connect(new) as conn:
            conn.execute("CREATE TABLE mine (n INTEGER)")
    path.rename(path.with_name("old.db"))
    os.replace(new, path)
    refused(store, "is another database now: put back the one that was here, or restart the server")
    path.with_name("old.db").rename(path)
    goes_on(store)


def test_an_older_copy_is_refused_and_a_whole_one_taken(path: Path, tmp_path: Path) -> None:
    store = opened(path)
    older = copied(path, tmp_path / "older.db")
    store.record([outcome("r", "other", key="third")])
    whole = copied(path, tmp_path / "whole.db")
    os.replace(older, path)
    refused(store, "is an older copy now")
    os.replace(whole, path)
    assert store.record([outcome("r", "other", key="third")]) == (Accepted.DUPLICATE,)
    goes_on(store)


def test_a_new_start_takes_what_is_there(path: Path, tmp_path: Path) -> None:
    store = opened(path)
    older = copied(path, tmp_path / "older.db")
    store.record([outcome("r", "other", key="third")])
    os.replace(older, path)
    refused(store, "older copy")
    store.close()
    goes_on(ExperimentStore(f"sqlite:///{path}"))


def test_what_is_written_while_the_file_is_replaced_is_not_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(path)

    def replaces(session: object, *_: object) -> tuple[Accepted, ...]:
        path.rename(path.with_name("old.db"))
        shutil.copy(path.with_name("old.db"), path)
        return (Accepted.COUNTED,)

    monkeypatch.setattr("router.experiments.store.store.record", replaces)
    with pytest.raises(StoreReplaced, match="was replaced under the server"):
        store.record([outcome("r", key="second")])


@pytest.mark.slow
def test_a_server_s_database_that_is_made_anew(server) -> None:
    store = ExperimentStore(empty(server))
    store.create(experiment())
    engine = create_engine(parse_url(server.url()))
    for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
        with engine.begin() as conn:
            conn.exec_driver_sql(statement)
    refused(store, "is another database now")
    ExperimentStore(server.url()).close()
    refused(store, "is another database now")
    with engine.begin() as conn:
        conn.exec_driver_sql("UPDATE lora_router_identity SET id = 'x'")
    engine.dispose()
    store.close()
