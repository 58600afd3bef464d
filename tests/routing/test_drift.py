"""Drift of routing: what it counts, when and how seldom it says so, and what outlives a restart."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import Axes, Binding, Calibration, Stage, TemperatureScaler
from router.routing.drift import (
    BASELINE,
    BEGINS,
    CALIBRATION,
    EVERY,
    FILE,
    LEAST,
    MOST,
    WINDOW,
    BaselineFile,
    DecisionCounts,
    Drift,
    chance,
    has_moved,
    proven_counts,
    still_moved,
    what_became,
)
from router.routing.policy import CalibratedRule, PlainRule
from router.types import AdapterProfile, AdapterRef, Decision, Reason, Request, RoutingHints, Turn

REQUEST = Request("r", (Turn("user", "hi"),))
USUAL = {"abstained": 0.2, "unfamiliar": 0.05, "adapters/legal": 0.45, "adapters/medical": 0.3}


def decision(what: str) -> Decision:
    if what.startswith("adapters/"):
        return Decision(AdapterRef(what.removeprefix("adapters/"), "1"), Reason.CLASSIFIED)
    return Decision(None, Reason(what))


DECISIONS = {what: decision(what) for what in (*USUAL, "adapters/new")}


def calibration(**said: Any) -> Calibration:
    decisions = {"rows": 1000, "abstained": 200, "unfamiliar": 50, "threshold": 0.9, "novelty_limit": 0.5}
    report = {"held_out": {"decisions": decisions | said}}
    return Calibration(
        {"c": TemperatureScaler()},
        (Stage({"c": 1.0}),),
        0.9,
        0.5,
        *(0.05, 0.05, 0.05),
        Axes(),
        Binding({}, {}),
        report=report,
    )


def calibrated(**said: Any) -> CalibratedRule:
    return CalibratedRule(calibration(**said), PlainRule())


def feed(drift: Drift, shares: Mapping[str, float], count: int, rng: random.Random) -> None:
    for what in rng.choices(list(shares), list(shares.values()), k=count):
        drift.observe(REQUEST, DECISIONS[what])


def alarms(drift: Drift) -> set[tuple[str, str]]:
    return {(one.what, one.against) for one in drift.seen.compared if one.alarm}


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (decision("abstained"), "abstained"),
        (decision("unfamiliar"), "unfamiliar"),
        (decision("adapters/legal"), "adapters/legal"),
        (Decision(AdapterRef("legal", "1"), Reason.EXPLICIT), ""),
        (Decision(AdapterRef("legal", "1"), Reason.HINT), ""),
        (Decision(None, Reason.FALLBACK), ""),
        (Decision(None, Reason.EXPLICIT), ""),
    ],
)
def test_only_what_classifiers_decided_counts(made: Decision, what: str) -> None:
    assert what_became(made) == what
    drift = Drift(lambda: None)
    for _ in range(LEAST + EVERY):
        drift.observe(REQUEST, made)
    assert drift.seen.decisions == (LEAST + EVERY if what else 0)


def test_what_a_hint_narrowed_does_not_count() -> None:
    drift = Drift(lambda: None)
    for hints in (RoutingHints(domain="legal"), RoutingHints(task="qa")):
        for _ in range(LEAST + EVERY):
            drift.observe(replace(REQUEST, routing=hints), decision("abstained"))
    assert drift.seen.decisions == 0


def test_nothing_is_said_before_there_is_enough_to_look_at() -> None:
    drift = Drift(calibrated)
    for _ in range(LEAST - 1):
        drift.observe(REQUEST, decision("abstained"))
    assert drift.seen.decisions == 0
    drift.observe(REQUEST, decision("abstained"))
    assert (drift.seen.decisions, drift.seen.shares) == (LEAST, {"abstained": 1.0})
    assert ("abstained", CALIBRATION) in alarms(drift)


def test_requests_unlike_the_calibrations_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    rule, rng = calibrated(), random.Random(1)
    drift = Drift(lambda: rule)
    feed(drift, USUAL, 900, rng)
    assert alarms(drift) == set()
    with caplog.at_level(logging.INFO):
        feed(drift, {"abstained": 0.6, "adapters/legal": 0.4}, 5 * WINDOW, rng)
        assert ("abstained", CALIBRATION) in alarms(drift)
        feed(drift, USUAL, 3 * WINDOW, rng)
    told = [r.getMessage() for r in caplog.records if "calibration" in r.getMessage()]
    assert ("abstained", CALIBRATION) not in alarms(drift)
    assert len(told) == 2
    assert told[0].startswith("routing drifts: abstained is ")
    assert "was 20 % of the requests that the calibration was proven on" in told[0]
    assert told[1].startswith("routing drifts no more: abstained is ")


def test_shares_of_adapters_are_compared_with_the_first_requests_alone() -> None:
    rule, rng = calibrated(), random.Random(2)
    drift = Drift(lambda: rule)
    feed(drift, USUAL, 2 * WINDOW, rng)
    assert {one.what for one in drift.seen.compared if one.against == CALIBRATION} == {
        "abstained",
        "unfamiliar",
    }
    assert {one.what for one in drift.seen.compared if one.against == BASELINE} == set(USUAL)
    assert alarms(drift) == set()
    moved = {"abstained": 0.2, "unfamiliar": 0.05, "adapters/medical": 0.45, "adapters/new": 0.3}
    feed(drift, moved, WINDOW, rng)
    assert alarms(drift) == {(f"adapters/{name}", BASELINE) for name in ("legal", "medical", "new")}


def test_without_a_calibration_there_are_the_first_requests() -> None:
    drift, rng = Drift(PlainRule), random.Random(3)
    feed(drift, USUAL, WINDOW, rng)
    assert drift.seen.compared == ()
    feed(drift, {**USUAL, "abstained": 0.9}, WINDOW, rng)
    assert alarms(drift) >= {("abstained", BASELINE)}


def test_another_rule_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    rules: list[object] = [calibrated()]
    drift, rng = Drift(lambda: rules[-1]), random.Random(4)
    feed(drift, {"abstained": 1.0}, 2 * WINDOW, rng)
    assert ("abstained", CALIBRATION) in alarms(drift)
    rules.append(calibrated())  # another object that says the same, as after a look at the folders
    feed(drift, {"abstained": 1.0}, 1, rng)
    assert ("abstained", CALIBRATION) in alarms(drift)
    rules.append(replace(calibrated(), differences=("adapter new is new",)))
    with caplog.at_level(logging.INFO):
        feed(drift, {"abstained": 1.0}, LEAST, rng)
    assert "compared anew" in caplog.text
    assert (drift.seen.decisions, drift.seen.compared) == (LEAST, ())


@pytest.mark.parametrize(
    "rule",
    [
        None,
        PlainRule(),
        replace(calibrated(), differences=("adapter new is new",)),
        replace(calibrated(), newcomers=frozenset({"new"})),
        CalibratedRule(replace(calibration(), report={}), PlainRule()),
        CalibratedRule(replace(calibration(), report={"held_out": 7}), PlainRule()),
        CalibratedRule(replace(calibration(), report={"held_out": {"decisions": [1]}}), PlainRule()),
        calibrated(threshold=0.8),
        calibrated(novelty_limit=1.0),
        calibrated(rows=LEAST - 1, abstained=1),
        calibrated(abstained=1001),
        calibrated(unfamiliar=-1),
        calibrated(rows="many"),
        calibrated(abstained=None),
    ],
)
def test_a_calibration_that_does_not_say_or_is_not_in_force(rule: object) -> None:
    assert proven_counts(rule) is None


def test_a_calibration_that_does() -> None:
    assert proven_counts(calibrated()) == DecisionCounts({"abstained": 200, "unfamiliar": 50}, 1000)


# -- the test of two shares


def test_the_chance_is_that_of_the_g_test() -> None:
    # by scipy.stats.chi2_contingency([[10, 20], [30, 40]], lambda_="log-likelihood", correction=False)
    assert chance(10, 30, 30, 70) == pytest.approx(0.36979636792989645)
    assert chance(0, 200, 0, 1000) == 1.0
    assert chance(200, 200, 0, 200) < 1e-60


@given(st.integers(1, 2000), st.integers(1, 2000), st.data())
def test_the_chance_is_one_for_equal_shares_and_symmetric(n: int, m: int, data: Any) -> None:
    one, other = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    p = chance(one, n, other, m)
    assert 0.0 <= p <= 1.0
    assert p == pytest.approx(chance(other, m, one, n), rel=1e-6, abs=1e-300)
    assert p == pytest.approx(chance(n - one, n, m - other, m), rel=1e-6, abs=1e-300)
    assert chance(one, n, 3 * one, 3 * n) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("of_200", "of_1000", "moves"),
    [
        (40, 290, False),  # 9 points
        (40, 300, False),  # 10 points, which 200 decisions cannot tell from chance
        (40, 400, True),
        (0, 99, False),
        (0, 100, True),
    ],
)
def test_a_share_moves_if_it_is_far_and_no_accident(of_200: int, of_1000: int, moves: bool) -> None:
    now, then = DecisionCounts({"abstained": of_200}, 200), DecisionCounts({"abstained": of_1000}, 1000)
    assert has_moved(now, then, "abstained") is moves
    assert has_moved(DecisionCounts({"abstained": of_200 * 5}, 1000), then, "abstained") is (
        of_1000 - of_200 * 5 >= 100
    )


def test_an_alarm_stays_until_half_of_it_is_gone() -> None:
    then = DecisionCounts({"a": 200}, 1000)
    assert [still_moved(DecisionCounts({"a": n}, 1000), then, "a") for n in (260, 250, 249, 151, 150)] == [
        *(True, True, False, False, True)
    ]
    assert BEGINS == 0.1


# -- how often, by simulation


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.2, 0.05, 0.45, 0.3), (0.5, 0.02, 0.48, 0.0), (0.25, 0.25, 0.25, 0.25)])
def test_no_false_alarm_in_three_hundred_thousand_decisions(shares: Sequence[float]) -> None:
    """Twenty servers with baselines of their own, and calibrations drawn like their requests."""
    rng = random.Random(20261127)
    usual = dict(zip(USUAL, shares, strict=True))
    begun: Counter[tuple[str, str]] = Counter()
    for _ in range(20):
        proven = Counter(rng.choices(list(usual), list(usual.values()), k=1000))
        rule = calibrated(abstained=proven["abstained"], unfamiliar=proven["unfamiliar"])
        drift = Drift(lambda rule=rule: rule)  # type: ignore[misc]
        for _ in range(100):
            feed(drift, usual, 50, rng)
            begun.update(alarms(drift))
        assert len(drift.seen.compared) >= 5
    assert begun == Counter()


@pytest.mark.parametrize("seed", range(10))
def test_a_change_of_twenty_points_is_seen_within_a_window(seed: int) -> None:
    rule, rng = calibrated(), random.Random(seed)
    drift = Drift(lambda: rule)
    feed(drift, USUAL, 3 * WINDOW, rng)
    assert alarms(drift) == set()
    feed(drift, {**USUAL, "abstained": 0.4, "adapters/legal": 0.25}, WINDOW, rng)
    assert alarms(drift) >= {
        ("abstained", CALIBRATION),
        ("abstained", BASELINE),
        ("adapters/legal", BASELINE),
    }


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_three_points_is_none(seed: int) -> None:
    rule, rng = calibrated(), random.Random(seed)
    drift = Drift(lambda: rule)
    feed(drift, USUAL, 2 * WINDOW, rng)
    for _ in range(40):
        feed(drift, {**USUAL, "abstained": 0.23, "adapters/legal": 0.42}, 50, rng)
        assert alarms(drift) == set()


def test_it_stays_small_with_any_number_of_adapters() -> None:
    drift = Drift(PlainRule)
    for number in range(5000):
        drift.observe(REQUEST, decision(f"adapters/a{number}"))
        assert len(drift._window) <= WINDOW
        assert len(drift._counts) <= WINDOW
    assert [one.what for one in drift.seen.compared] == ["abstained", "unfamiliar"]
    feed(drift, USUAL, WINDOW, random.Random(5))
    assert {one.what for one in drift.seen.compared} == set(USUAL)
    assert alarms(drift) == {(what, BASELINE) for what in USUAL if USUAL[what] > 0.1}


def test_a_scraper_sees_shares_and_alarms() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from router.server.metrics import DriftCollector

    registry, rule = CollectorRegistry(), calibrated()
    drift = Drift(lambda: rule)
    registry.register(DriftCollector(drift))
    assert b"lora_router_routing_decisions 0.0" in generate_latest(registry)
    feed(drift, {"abstained": 0.7, "adapters/legal": 0.3}, 300, random.Random(6))
    page = SimpleNamespace(text=generate_latest(registry).decode())
    assert 'lora_router_routing_drift{against="calibration",what="abstained"} 1.0' in page.text
    assert 'lora_router_routing_drift{against="calibration",what="unfamiliar"} 0.0' in page.text
    assert 'lora_router_routing_share_expected{against="calibration",what="abstained"} 0.2' in page.text
    assert 'lora_router_routing_share{what="adapters/legal"} 0.' in page.text


LEGAL, MEDICAL = AdapterProfile("legal", "1"), AdapterProfile("medical", "1", examples=("old",))
COUNTS = DecisionCounts({"abstained": 300, "adapters/legal": 700}, 1000)


class Now:
    """What decides: changed by the tests."""

    def __init__(self, folder: Path) -> None:
        self.profiles, self.digest = [LEGAL, MEDICAL], "d"
        self.file = BaselineFile(folder, lambda: self.profiles, lambda: self.digest)


def test_a_baseline_is_of_one_set(tmp_path: Path) -> None:
    now = Now(tmp_path / "state")
    assert now.file.read() is None
    now.file.keep(COUNTS)
    now.file.close()
    later = Now(tmp_path / "state")
    assert later.file.read() == COUNTS
    later.profiles = [replace(MEDICAL, version="2"), LEGAL]
    assert later.file.read() == COUNTS
    for profiles in ([LEGAL], [LEGAL, replace(MEDICAL, examples=("newer",))]):
        later.profiles = profiles
        assert later.file.read() is None
    later.profiles, later.digest = [LEGAL, MEDICAL], "other"
    assert later.file.read() is None


def test_the_latest_are_remembered(tmp_path: Path) -> None:
    now = Now(tmp_path)
    for number in range(MOST + 3):
        now.digest = str(number)
        now.file.keep(DecisionCounts({"abstained": number + 1}, number + 1))
    now.file.close()
    found = []
    for number in range(MOST + 3):
        now.digest = str(number)
        found.append(now.file.read() is not None)
    assert found == [False] * 3 + [True] * MOST
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"KEY": 1}', b'{"KEY": {"of": {"a": 1}}}'),
        *(b'{"KEY": {"of": {"a": 1}, "total": 2}}', b'{"KEY": {"of": {"a": 2, "b": -1}, "total": 1}}'),
        *(b'{"KEY": {"of": [1], "total": 1}}', b'{"KEY": {"of": {}, "total": 0}}'),
        b'{"KEY": {"of": {"a": 1e999}, "total": 1}}',
    ],
)
def test_a_file_that_cannot_be_used_counts_as_empty(tmp_path: Path, said: bytes) -> None:
    now = Now(tmp_path)
    (tmp_path / FILE).write_bytes(said.replace(b"KEY", now.file._key().encode()))
    assert now.file.read() is None
    now.file.keep(COUNTS)
    now.file.close()
    assert now.file.read() == COUNTS


def test_a_folder_that_takes_nothing_is_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    now = Now(tmp_path / "file" / "state")
    now.file.keep(COUNTS)
    now.file.close()
    assert "could not be kept" in caplog.text
    assert now.file.read() is None


def test_drift_is_seen_over_a_restart(tmp_path: Path) -> None:
    rule, rng, now = PlainRule(), random.Random(8), Now(tmp_path)
    feed(Drift(lambda: rule, now.file), USUAL, WINDOW, rng)
    now.file.close()
    assert json.loads((tmp_path / FILE).read_text())
    again = Drift(lambda: rule, Now(tmp_path).file)
    feed(again, {**USUAL, "abstained": 0.9}, LEAST, rng)
    assert ("abstained", BASELINE) in alarms(again)
    other = Now(tmp_path)
    other.digest = "another calibration"
    fresh = Drift(lambda: rule, other.file)
    feed(fresh, {**USUAL, "abstained": 0.9}, LEAST, rng)
    assert fresh.seen.compared == ()
