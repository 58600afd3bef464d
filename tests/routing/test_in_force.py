"""The rule in force beside adapters, classifiers and a calibration file that change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.calibration.file import read_calibration, write_calibration
from router.calibration.model import Axes, Calibration, CalibrationError, binding_of
from router.classifiers.fake_base import FakeBase
from router.cli.settings import calibration_file
from router.config import Settings
from router.reread import Reread
from router.routing import Classifier, Scores
from router.routing.in_force import RuleInForce, fingerprint
from router.routing.policy import FITTED, PlainRule
from router.routing.router import IN_LANGUAGE, Router
from router.types import AdapterProfile, LostVote, Reason, Request, Visible, VoteError
from tests.routing.conftest import calibration


@pytest.fixture
def says(kit: Any) -> Any:
    return kit.registered(kit.says("c", Scores({"medical": 0.8})))


def test_without_a_calibration_there_is_nothing_to_say(kit: Any, says: Any) -> None:
    in_force = RuleInForce(PlainRule(0.5))
    in_force.classifiers_are([says])
    in_force.adapters_are([kit.medical])
    assert in_force.status == ""
    assert isinstance(in_force.now, PlainRule)
    assert in_force.now.kinds == {"medical": "domain"}


def test_what_differs_is_said_and_logged_once(kit: Any, says: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    in_force = RuleInForce(PlainRule(0.5), kit.calibration("smol"), base="smol")
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == ""  # the classifiers are not known yet
    in_force.classifiers_are([says])
    assert in_force.status == FITTED
    in_force.adapters_are([kit.medical])
    in_force.compare()
    assert in_force.status == "stale: adapter legal is gone"
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == FITTED
    messages = [r.message for r in caplog.records]
    assert [text for text in messages if "another set" in text] == [
        "the calibration is for another set (adapter legal is gone): 0.90 confidence is needed until "
        "`lora-router route calibrate` was run again"
    ]


def test_another_policy_of_axes_is_another_set(kit: Any, says: Any) -> None:
    in_force = RuleInForce(PlainRule(0.5, axes=Axes(task_first=False)), kit.calibration("smol"))
    in_force.classifiers_are([says])
    in_force.adapters_are([kit.medical, kit.legal])
    assert in_force.status == "stale: task_first or domain_first is set otherwise"


def test_a_classifier_without_a_fingerprint_fits_no_calibration(kit: Any) -> None:
    class Mute(kit.says):  # type: ignore[misc]
        def fingerprint(self) -> str:
            raise RuntimeError("none")

    assert fingerprint(kit.registered(Mute("c"))) == "c/none"


async def test_a_router_with_a_calibration(kit: Any, says: Any, start: Any) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    left_out = kit.says("probe", Scores({"legal": 1.0}))
    in_force = RuleInForce(PlainRule(0.5), kit.calibration("smol", left_out=("probe",)))
    router = await start(says, kit.registered(left_out, priority=1), catalog=catalog, rule=in_force)
    decision = await router.route(kit.asking())
    assert decision.adapter is not None
    assert (decision.adapter.name, decision.reason) == ("medical", Reason.CLASSIFIED)
    assert (decision.threshold, decision.calibration) == (0.6, FITTED)
    assert left_out.batches == []
    catalog.become(kit.medical, kit.translation)
    await kit.eventually(lambda: router.rule.status != FITTED)
    decision = await router.route(kit.asking())
    assert (decision.adapter, decision.reason, decision.threshold) == (None, Reason.ABSTAINED, 0.9)
    assert decision.calibration == "stale: adapter legal is gone"


@pytest.mark.parametrize("sees", ["*", "medical"])
async def test_a_decision_without_a_vote_of_the_calibration_is_not_called_fitted(
    kit: Any, says: Any, start: Any, sees: str
) -> None:
    bad = kit.registered(kit.says("bad", "nonsense"), priority=1)
    known = {name: f"{name}/0" for name in ("bad", "c")}
    binding = binding_of((kit.legal, kit.medical), known, "smol")
    in_force = RuleInForce(PlainRule(0.5), kit.calibration(binding=binding), base="smol")
    router = await start(bad, says, catalog=kit.catalog([kit.medical, kit.legal]), rule=in_force)
    assert router.rule.status == FITTED
    decision = await router.route(replace(kit.asking(), visible=Visible((sees,))))
    assert decision.calibration == "stale: no vote of bad (invalid)"
    assert decision.votes_lost == (LostVote("bad", VoteError.INVALID),)
    assert decision.threshold == 0.9


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ((), "stale: classifier probe cannot be asked: the engine of this base gives no sight"),
        (("probe",), FITTED),
    ],
)
async def test_a_classifier_that_cannot_work_here_makes_it_stale_in_words(
    kit: Any, says: Any, start: Any, left_out: tuple[str, ...], said: str
) -> None:
    class Seeing(kit.says):  # type: ignore[misc]
        needs = ("sight",)

        def bind(self, base: Any) -> None:
            raise AssertionError("never asked")

    probe = kit.registered(Seeing("probe", Scores({"medical": 0.8})))
    known = {name: f"{name}/0" for name in ("c", "probe") if name not in left_out}
    binding = binding_of((kit.legal, kit.medical), known)
    in_force = RuleInForce(PlainRule(0.5), kit.calibration(left_out=left_out, binding=binding))
    catalog = kit.catalog([kit.medical, kit.legal])
    router = await start(says, probe, catalog=catalog, base_for=lambda timeout: FakeBase(), rule=in_force)
    assert probe.health.state == "unable"
    assert (await router.route(kit.asking())).calibration == said


# -- classifiers for other languages


def voice(kit: Any) -> Any:
    classifier = kit.says("voice", Scores({"legal": 0.9}))
    classifier.foreign = True
    return kit.registered(classifier, priority=1)


async def test_a_calibration_holds_beside_a_voice_and_says_nothing_of_its_texts(
    kit: Any, says: Any, start: Any
) -> None:
    examples = ("What does the contract say?", "Is this clause valid?")
    legal = replace(kit.legal, examples=examples)
    of = kit.calibration(binding=binding_of((legal, kit.medical), {"c": "c/0"}))
    catalog, rule = kit.catalog([legal, kit.medical]), RuleInForce(PlainRule(0.5), of)
    router = await start(voice(kit), says, catalog=catalog, rule=rule, ready_seconds=1)
    assert router.rule.status == FITTED
    assert router.flaws == []
    english = await router.route(kit.asking("What is this about?"))
    assert (english.classifier, english.calibration) == ("c", FITTED)
    german = await router.route(kit.asking("Worum geht es in diesem Vertrag?"))
    assert (german.classifier, german.calibration) == ("voice", IN_LANGUAGE)
    assert german.adapter is not None
    assert german.adapter.name == "legal"


def test_the_setting_switches_voices_off(kit: Any, says: Any) -> None:
    for on in (True, False):
        in_force = RuleInForce(PlainRule(0.5), multilingual=on)
        in_force.classifiers_are([voice(kit), says])
        assert in_force.now.counts("voice") is on
        assert in_force.now.counts("c")


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


def test_a_target_that_the_new_one_cannot_keep_leaves_the_one_before(kit: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, kit.calibration(target=0.1))
    file = calibration_file(Settings(calibration=str(path), target_error=0.1))
    write_calibration(path, kit.calibration(target=0.2))
    assert file.value() == kit.calibration(target=0.1)
    assert "says nothing of other targets" in file.problem
