"""Folders under way."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from router.errors import AdapterRejected, Unavailable
from router.sources import mirror as module
from router.sources.mirror import Downloads
from router.sources.store import Remote, RemoteFolder
from tests.sources.mirror.conftest import WEIGHTS

Make = Callable[[Callable[[RemoteFolder], None]], Downloads]


def folder(place: str, content: str = "", size: int = 10) -> RemoteFolder:
    return RemoteFolder.of(place, [Remote(WEIGHTS, size, place, content)])


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def shown():
    return []


@pytest.fixture
def make(stop, shown):
    made: list[Downloads] = []

    def make(bring: Callable[[RemoteFolder], None]) -> Downloads:
        made.append(Downloads(bring, stop, lambda *now: shown.append(now)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def came(downloads: Downloads, seconds: float = 5.0) -> dict[str, BaseException | None]:
    return {folder.place: fault for folder, fault in downloads.finished(seconds)}


def test_each_arrives_with_what_became_of_it(make):
    refused = AdapterRejected("no")

    def bring(one: RemoteFolder) -> None:
        if one.place == "b":
            raise refused

    downloads = make(bring)
    downloads.start([folder("a"), folder("b")])
    assert downloads.places == {"a", "b"}
    assert came(downloads) == {"a": None, "b": refused}
    assert downloads.places == frozenset()
    assert came(downloads) == {}


def test_nobody_waits_longer_than_was_said(make):
    go_on = threading.Event()
    downloads = make(lambda one: None if one.place == "a" else go_on.wait(20) and None)
    downloads.start([folder("a"), folder("b")])
    assert came(downloads, 0.2) == {"a": None}
    assert downloads.silent_seconds > 0
    go_on.set()
    assert came(downloads) == {"b": None}
    assert downloads.silent_seconds == 0


def test_the_same_weights_come_one_after_the_other(make):
    now, most, lock = [0], [0], threading.Lock()

    def bring(one: RemoteFolder) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.01)
        with lock:
            now[0] -= 1

    downloads = make(bring)
    downloads.start([folder(str(number), "the same") for number in range(5)])
    assert len(came(downloads)) == 5
    assert most == [1]


def test_after_many_faults_the_rest_is_given_back_and_not_blamed(make, monkeypatch):
    monkeypatch.setattr(module, "MOST_FAULTS", 3)
    tried: list[str] = []

    def bring(one: RemoteFolder) -> None:
        tried.append(one.place)
        raise Unavailable("away")

    downloads = make(bring)
    downloads.start([folder(str(number), "the same") for number in range(9)])
    assert sorted(came(downloads)) == sorted(tried) == ["0", "1", "2"]
    assert downloads.places == frozenset()
    downloads.start([folder(str(number), "the same") for number in range(9)])
    came(downloads)
    assert tried[3:] == ["3", "4", "5"], "what failed comes last"


def test_what_is_refused_is_no_fault_of_the_store(make, monkeypatch):
    monkeypatch.setattr(module, "MOST_FAULTS", 1)

    def bring(one: RemoteFolder) -> None:
        raise AdapterRejected("no")

    downloads = make(bring)
    downloads.start([folder(str(number), "the same") for number in range(4)])
    assert len(came(downloads)) == 4


def test_when_it_stops_nothing_more_is_begun(make, stop):
    tried: list[str] = []
    downloads = make(lambda one: tried.append(one.place))
    stop.set()
    downloads.start([folder("a")])
    assert (came(downloads), tried) == ({}, [])
    with pytest.raises(Unavailable, match="the server is stopping"):
        downloads.progress(WEIGHTS, 1, 10)


def test_bytes_that_come_are_a_sign(make):
    seen: list[float] = []

    def bring(one: RemoteFolder) -> None:
        downloads._moved -= 100
        seen.append(downloads.silent_seconds)
        downloads.progress(WEIGHTS, 5, 10)
        seen.append(downloads.silent_seconds)

    downloads = make(bring)
    downloads.start([folder("a")])
    came(downloads)
    assert seen[0] >= 100 > 50 > seen[1]


def test_bytes_are_counted_over_all_that_is_under_way(make, shown):
    def bring(one: RemoteFolder) -> None:
        downloads.progress(WEIGHTS, 5, 10)
        downloads.progress(WEIGHTS, 10, 10)

    downloads = make(bring)
    downloads.start([folder("a", "the same"), folder("b", "the same")])
    came(downloads)
    assert shown == [(5, 20), (10, 20), (15, 20), (20, 20)]
    downloads.start([folder("c", size=10)])
    came(downloads)
    assert shown[-1] == (10, 10), "counted anew when all had come"
