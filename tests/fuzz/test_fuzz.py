"""Every parser and every RPC under fire: what was found once, some inputs more, and that faults are seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import hypothesis
import pytest

from router.errors import ConfigError, RouterError
from tests.fuzz import rpcs
from tests.fuzz.engines import Tally, by_hypothesis, by_random, keep, strategy
from tests.fuzz.inputs import bytes_changed
from tests.fuzz.targets import CORPUS, TARGETS, UNITS, Target, tried, work

KEPT = [(target, path) for target in TARGETS.values() for path in target.kept()]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is wrong with a file is logged, which takes longer than to find it."""
    logging.getLogger("router").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("router").setLevel(logging.NOTSET)


@pytest.mark.parametrize(("target", "path"), KEPT, ids=[f"{t.name}/{p.name}" for t, p in KEPT])
def test_what_was_found_once_is_mended(target: Target, path: Path) -> None:
    found = tried(target, path.read_bytes())
    assert not found.wrong, found.trace


def test_the_corpus_is_of_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_good_inputs_are_good(target: Target) -> None:
    assert target.examples()
    for data in target.examples():
        try:
            target.run(data)
        except RouterError as error:
            pytest.fail(error.message)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_some_hundred_inputs(target: Target) -> None:
    @hypothesis.settings(max_examples=50, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(strategy(target))
    def run(data: bytes) -> None:
        found = tried(target, data)
        assert not found.wrong or found.kind == "slow", found.trace  # a busy machine is slow, too

    run()


def _fragile(data: bytes) -> None:
    if b"NaN" in data:
        raise KeyError("NaN")
    if data.count(b"[") > 100:
        raise ConfigError("documented")


@pytest.mark.parametrize("engine", [by_hypothesis, by_random])
def test_a_fault_is_seen_and_kept(engine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = Target("fragile", _fragile, bytes_changed, lambda: [b'{"a": 1}'])
    tally = Tally()
    for tally in engine(target, 30.0):  # type: ignore[operator]
        if tally.found:
            break
    ((attempt, data),) = tally.found.values()
    assert (attempt.kind, b"NaN" in data) == ("KeyError in _fragile", True)
    monkeypatch.setattr("tests.fuzz.engines.CORPUS", tmp_path)
    (path,) = keep(target, tally)
    assert path.read_bytes() == data


def test_a_slow_input_is_a_fault() -> None:
    def slow(data: bytes) -> None:
        work(len(data) * UNITS)

    target = Target("slow", slow, bytes_changed, lambda: [b""])
    assert not tried(target, b"").wrong
    found = tried(target, b"xx")
    assert found.kind == "slow"


@pytest.mark.slow
async def test_bad_calls_are_answered_with_whose_fault_it_was(tmp_path: Path) -> None:
    tally = Tally()
    async with rpcs.serving(tmp_path) as app:
        await rpcs.bombard(app, iter(range(400)), tally)
    assert not tally.found, [attempt.wrong for attempt, _ in tally.found.values()]
    assert tally.inputs == 400


@pytest.mark.long
async def test_ten_thousand_bad_calls(tmp_path: Path) -> None:
    tally, first = Tally(), Random().randrange(1 << 60)
    async with rpcs.serving(tmp_path) as app:
        await rpcs.bombard(app, iter(range(first, first + 10_000)), tally)
    assert not tally.found, [attempt.wrong for attempt, _ in tally.found.values()]
