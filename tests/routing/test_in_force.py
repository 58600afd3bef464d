"""The rule in force beside adapters, classifiers and a calibration file that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cli.settings import calibration_file
from router.config import Settings
from router.reread import Reread
from router.routing import Scores
from router.routing.calibration import Calibration, CalibrationError, read_calibration, write_calibration
from router.routing.in_force import CALIBRATED, NEWCOMER, RuleInForce, fingerprint
from router.routing.policy import Axis, Rule
from router.routing.router import IN_LANGUAGE, LOST, Router
from router.types import LostVote, Reason, VoteError
from tests.routing.conftest import calibration


@pytest.fixture
def says(kit: Any) -> Any:
    return kit.registered(kit.says("c", Scores({"medical": 0.8})))


def voice(kit: Any) -> Any:
    classifier = kit.says("voice", Scores({"legal": 0.9}))
    classifier.foreign = True
    return kit.registered(classifier, priority=1)


def test_the_rule_follows_adapters_and_classifiers(kit: Any, says: Any) -> None:
    in_force = RuleInForce(Rule(0.5))
    in_force.classifiers_are([voice(kit), replace(says, required=True)])
    in_force.adapters_are([kit.medical])
    assert (in_force.now.voices, in_force.now.required) == (frozenset({"voice"}), frozenset({"c"}))
    assert in_force.now.kinds == {"medical": Axis.DOMAIN}


def test_a_calibration_replaces_the_threshold_of_the_settings_alone(kit: Any) -> None:
    in_force = RuleInForce(Rule(0.5, required=frozenset({"x"})), kit.calibration(threshold=0.7))
    assert in_force.now == Rule(0.7, required=frozenset({"x"}))
    in_force.calibration_is(None)
    assert in_force.now == Rule(0.5, required=frozenset({"x"}))


def test_the_status_says_whether_the_calibration_covers_an_adapter(kit: Any) -> None:
    assert RuleInForce(Rule()).status("medical") == ""
    in_force = RuleInForce(Rule(), kit.calibration())
    assert [in_force.status(name) for name in ("", "medical", "cooking")] == [
        CALIBRATED,
        CALIBRATED,
        NEWCOMER,
    ]


def test_a_classifier_that_cannot_say_it_has_a_fingerprint_of_its_own(kit: Any) -> None:
    class Mute(kit.says):  # type: ignore[misc]
        def fingerprint(self) -> str:
            raise RuntimeError("none")

    assert fingerprint(kit.registered(Mute("c"))) == "c/none"


# -- what decisions say of the calibration


async def test_a_decision_says_what_the_calibration_does_not_cover(kit: Any, start: Any) -> None:
    shouting = kit.registered(
        kit.says("c", lambda r: Scores({"translation" if r.text.isupper() else "medical": 0.8}))
    )
    router = await start(shouting, rule=RuleInForce(Rule(), kit.calibration()))
    known = await router.route(kit.asking())
    assert known.adapter is not None
    assert (known.adapter.name, known.threshold, known.calibration) == ("medical", 0.6, CALIBRATED)
    new = await router.route(kit.asking("TRANSLATE"))
    assert new.adapter is not None
    assert (new.adapter.name, new.calibration) == ("translation", NEWCOMER)


async def test_a_decision_without_a_vote_is_not_called_calibrated(kit: Any, says: Any, start: Any) -> None:
    bad = kit.registered(kit.says("bad", "nonsense"), priority=1)
    router = await start(bad, says, rule=RuleInForce(Rule(), kit.calibration()))
    decision = await router.route(kit.asking())
    assert decision.calibration == LOST + "bad (invalid)"
    assert decision.votes_lost == (LostVote("bad", VoteError.INVALID),)


async def test_a_calibration_says_nothing_of_texts_in_other_languages(
    kit: Any, says: Any, start: Any
) -> None:
    legal = replace(kit.legal, examples=("What does the contract say?", "Is this clause valid?"))
    rule = RuleInForce(Rule(), kit.calibration())
    router = await start(voice(kit), says, catalog=kit.catalog([legal, kit.medical]), rule=rule)
    english = await router.route(kit.asking("What is this about?"))
    assert (english.classifier, english.calibration) == ("c", CALIBRATED)
    german = await router.route(kit.asking("Worum geht es in diesem Vertrag?"))
    assert (german.classifier, german.calibration) == ("voice", IN_LANGUAGE)


# -- the file, while the server runs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.routing.in_force.LOOK_SECONDS", 0.02)


@asynccontextmanager
async def serving(kit: Any, path: Path, says: Any) -> Any:
    file = Reread([path], lambda: read_calibration(path) if path.exists() else None)
    rule = RuleInForce(Rule(), file.value())
    router = Router(kit.catalog([kit.medical, kit.legal]), kit.host(says), rule=rule, calibration=file)
    await router.start()
    try:
        yield router
    finally:
        await router.close()


async def test_another_calibration_decides_without_a_restart(kit: Any, says: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    async with serving(kit, path, says) as router:
        assert (await router.route(kit.asking())).calibration == ""
        for threshold, reason in ((0.6, Reason.CLASSIFIED), (0.99, Reason.ABSTAINED)):
            write_calibration(path, kit.calibration(threshold=threshold))
            await kit.eventually(lambda wanted=threshold: router.rule.now.threshold == wanted)
            decision = await router.route(kit.asking())
            assert (decision.reason, decision.calibration) == (reason, CALIBRATED)
        path.write_text("{")
        await kit.eventually(lambda: router.flaws != [])
        (flaw,) = router.flaws
        assert flaw.startswith("the calibration file cannot be used, the one before holds: ")
        assert router.rule.now.threshold == 0.99
        write_calibration(path, kit.calibration())
        await kit.eventually(lambda: router.rule.now.threshold == 0.6)
        assert router.flaws == []


async def test_a_failure_to_take_one_is_tried_again(
    kit: Any, says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration())
    async with serving(kit, path, says) as router:
        failed = []

        def fail(_: Calibration) -> None:
            failed.append(1)
            raise MemoryError

        monkeypatch.setattr(router.rule, "calibration_is", fail)
        write_calibration(path, kit.calibration(threshold=0.99))
        await kit.eventually(lambda: len(failed) > 1)
        monkeypatch.undo()
        await kit.eventually(lambda: router.rule.now.threshold == 0.99)


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("shape", [lambda path: None, Path.mkdir, pipe, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("auto", [True, False])
def test_what_is_no_readable_file_leaves_the_one_before(
    kit: Any, tmp_path: Path, auto: bool, shape: Callable[[Path], None]
) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration())
    location = "auto" if auto else str(path)
    file = calibration_file(Settings(adapters_dir=(tmp_path,), calibration=location))
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
