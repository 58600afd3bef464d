"""A calibration file that changes while a router runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.calibration.file import read_calibration, write_calibration
from router.calibration.model import Calibration, CalibrationError, binding_of
from router.cli.settings import calibration_file
from router.config import Settings
from router.reread import Reread
from router.routing import Classifier, Scores
from router.routing.in_force import RuleInForce
from router.routing.policy import PlainRule
from router.routing.router import Router
from router.types import AdapterProfile, Reason, Request
from tests.routing.conftest import calibration

HOLDS = "the calibration file cannot be used, the one before holds: "


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.routing.in_force.LOOK_SECONDS", 0.02)


class Learner(Classifier):
    """Gives medical 0.8, and remembers what it learned."""

    name = "c"

    def __init__(self) -> None:
        self.learned: list[tuple[AdapterProfile, ...]] = []

    def fit(self, adapters: Any) -> None:
        self.learned.append(tuple(adapters))

    def classify_batch(self, requests: Any) -> list[Scores]:
        return [Scores({"medical": 0.8}) for _ in requests]


@asynccontextmanager
async def serving(kit: Any, path: Path, *registrations: Any) -> Any:
    file = Reread([path], lambda: read_calibration(path) if path.exists() else None)
    rule = RuleInForce(PlainRule(0.5), file.value())
    catalog = kit.catalog([kit.medical, kit.legal])
    router = Router(catalog, kit.host(*registrations), rule=rule, calibration=file)
    await router.start()
    try:
        yield router
    finally:
        await router.close()


async def reason(router: Router, request: Request) -> Reason:
    return (await router.route(request)).reason


async def test_another_calibration_decides_without_a_restart(kit: Any, tmp_path: Path) -> None:
    path, learner = tmp_path / "calibration.json", Learner()
    write_calibration(path, kit.calibration())
    async with serving(kit, path, kit.registered(learner)) as router:
        assert await reason(router, kit.asking()) is Reason.CLASSIFIED
        write_calibration(path, kit.calibration(threshold=0.99))
        await kit.eventually(lambda: router.rule.now.calibration.threshold == 0.99)
        assert await reason(router, kit.asking()) is Reason.ABSTAINED
        assert router.flaws == []


async def test_classifiers_learn_what_the_new_calibration_was_made_with(kit: Any, tmp_path: Path) -> None:
    path, learner = tmp_path / "calibration.json", Learner()
    write_calibration(path, kit.calibration())
    taught = (kit.legal, AdapterProfile("medical", "1.0.0", examples=("a cough",)))
    async with serving(kit, path, kit.registered(learner)) as router:
        new = kit.calibration(binding=binding_of(taught, {"c": "c/0"}), profiles=taught)
        write_calibration(path, new)
        await kit.eventually(lambda: router.rule.now.calibration.profiles == taught)
        assert learner.learned[-1] == taught


async def test_the_first_calibration_is_taken_too(kit: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    async with serving(kit, path, kit.registered(Learner())) as router:
        assert router.rule.status == ""
        write_calibration(path, kit.calibration())
        await kit.eventually(lambda: router.rule.status == "fitted")


async def test_one_for_other_classifiers_waits_until_they_are_here(kit: Any, tmp_path: Path) -> None:
    path, new = tmp_path / "calibration.json", kit.registered(kit.says("d", Scores({"legal": 0.9})))
    write_calibration(path, kit.calibration())
    async with serving(kit, path, kit.registered(Learner())) as router:
        host = router._host
        binding = binding_of((kit.legal, kit.medical), {"c": "c/0", "d": "d/0"})
        both = kit.calibration(binding=binding)
        both = kit.calibration(
            binding=binding,
            scalers={**both.scalers, "d": both.scalers["c"]},
            stages=(*both.stages, *both.stages),
        )
        write_calibration(path, both)
        await kit.eventually(lambda: router.flaws != [])
        assert router.flaws == [f"{HOLDS}it was made for another set: classifier d is gone"]
        assert router.rule.status == "fitted"
        host.become(*host.given, new)
        await kit.eventually(lambda: router.rule.now.calibration == both)
        assert (router.flaws, router.rule.status) == ([], "fitted")


async def test_a_failure_to_take_one_is_tried_again(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration())
    async with serving(kit, path, kit.registered(Learner())) as router:
        failed = []

        def fail(_: Calibration) -> None:
            failed.append(1)
            raise MemoryError

        monkeypatch.setattr(router.rule, "calibration_is", fail)
        write_calibration(path, kit.calibration(threshold=0.99))
        await kit.eventually(lambda: len(failed) > 1)
        monkeypatch.undo()
        await kit.eventually(lambda: router.rule.now.calibration.threshold == 0.99)


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("shape", [lambda path: None, Path.mkdir, pipe, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("auto", [True, False])
def test_what_is_no_readable_file_leaves_the_one_before(
    kit: Any, tmp_path: Path, auto: bool, shape: Callable[[Path], None]
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration())
    said = "auto" if auto else str(path)
    file = calibration_file(Settings(adapters_dir=(tmp_path,), calibration=said))
    path.unlink()
    shape(path)
    assert file.value() == kit.calibration()
    assert str(path) in file.problem
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    write_calibration(path, kit.calibration(threshold=0.7))
    found = file.value()
    assert found is not None
    assert (found.threshold, file.problem) == (0.7, "")


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_content_leaves_the_one_before(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    write_calibration(path, calibration())
    file, good = calibration_file(Settings(calibration=str(path))), path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    content = data.draw(
        st.one_of(
            st.binary(max_size=100),
            st.just(good[:at]),
            st.binary(max_size=3).map(lambda by: good[:at] + by + good[at + 1 :]),
        ).filter(bool)  # an emptied file is not read at once
    )
    path.write_bytes(content)
    try:
        expected = read_calibration(path)
    except CalibrationError:
        assert file.value() == calibration()
        assert file.problem
    else:
        assert file.value() == expected
        assert not file.problem


def test_a_target_that_the_new_one_cannot_keep_leaves_the_one_before(kit: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration(target=0.1))
    file = calibration_file(Settings(calibration=str(path), target_error=0.1))
    write_calibration(path, kit.calibration(target=0.2))
    assert file.value() == kit.calibration(target=0.1)
    assert "says nothing of other targets" in file.problem
