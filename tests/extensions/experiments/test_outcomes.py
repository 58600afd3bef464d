from __future__ import annotations

import math
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.extensions.experiments import calls as wire
from router.extensions.experiments.assignment import unit_hash
from router.extensions.experiments.model import Experiment, ExperimentPhase, Lifecycle, Spec, StoredOutcome
from router.extensions.experiments.outcomes import Declared, outcome_of
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.plans import plan

NOW, EARLIER = 1_700_000_000.25, {"seconds": 1_699_999_999}
HASH = unit_hash("anna")


def running(name: str, spec: Spec) -> Experiment:
    return Experiment(name, spec, Lifecycle.RUNNING, (ExperimentPhase(1, 0.0, "e", "v", spec),))


DECLARED = Declared([running("trial", plan()), Experiment("draft", plan())])


def read(**fields: Any) -> StoredOutcome:
    fields = {"response_id": "r1", "metric": "solved", "value": 1.0, **fields}
    return outcome_of(pb.Outcome(**fields), "outcome", NOW, DECLARED)


def test_of_a_response() -> None:
    assert read(idempotency_key="k") == StoredOutcome("k", "solved", 1.0, NOW, response_id="r1", received=NOW)


def test_of_a_unit() -> None:
    unit = {"experiment": "experiments/trial", "unit": "anna"}
    found = outcome_of(pb.Outcome(unit=unit, metric="stars", value=4.5), "outcome", NOW, DECLARED)
    assert (found.experiment, found.unit, found.response_id) == ("trial", unit_hash("anna"), "")
    assert "anna" not in repr(found)


def test_of_a_unit_by_its_hash() -> None:
    unit = {"experiment": "experiments/trial", "unit_hash": HASH}
    by_hash = outcome_of(pb.Outcome(unit=unit, metric="stars", value=4.5, time=EARLIER), "o", NOW, DECLARED)
    unit = {"experiment": "experiments/trial", "unit": "anna"}
    by_unit = outcome_of(pb.Outcome(unit=unit, metric="stars", value=4.5, time=EARLIER), "o", NOW, DECLARED)
    assert by_hash == by_unit  # the key, too: told twice, it counts once
    assert by_hash.unit == HASH


def test_when_it_came_is_the_servers_clock() -> None:
    assert (read(time=EARLIER).time, read(time=EARLIER).received) == (1_699_999_999, NOW)
    assert read().received == read().time == NOW


@pytest.mark.parametrize("fields", [{"unit": "anna"}, {"unit_hash": HASH}])
def test_what_a_client_sends_of_a_unit_is_read_by_the_server(fields: dict[str, str]) -> None:
    said = wire.Outcome("stars", 4.5, experiment="trial", time=5.0, key="k", **fields)
    found = outcome_of(wire.outcome_message(said), "outcome", NOW, DECLARED)
    assert found == StoredOutcome("k", "stars", 4.5, 5.0, "", "trial", HASH, received=NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"unit_hash": HASH},
        {"experiment": "trial"},
        {"experiment": "trial", "unit": "anna", "unit_hash": HASH},
        {"experiment": "trial", "unit_hash": HASH, "response_id": "r1"},
        {"unit_hash": HASH, "response_id": "r1"},
    ],
)
def test_a_client_sends_no_outcome_of_two_things_or_of_none(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="of a response_id, or of an experiment and a unit or a unit_hash"):
        wire.outcome_message(wire.Outcome("stars", 4.5, **fields))


def test_a_key_is_made_of_subject_metric_and_time() -> None:
    at = {"seconds": 1_699_999_999, "nanos": 5}
    first, again = read(time=at), read(time=at, value=0.0)
    assert first.key == again.key
    assert first.key.startswith("auto-")
    others = [read(time=at, metric="other"), read(time=at, response_id="r2"), read(time={"seconds": 1})]
    assert len({first.key, *(o.key for o in others)}) == 4


def test_without_a_time_every_outcome_is_its_own() -> None:
    assert read().key != read().key
    assert read().time == NOW


@pytest.mark.parametrize("seconds", [0, 1, int(NOW), int(NOW) + 300])
def test_times_that_are_taken(seconds: int) -> None:
    assert read(time={"seconds": seconds}).time == seconds


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"time": {"seconds": int(NOW) + 302}}, "time", "302 s ahead"),
        ({"time": {"seconds": -1}}, "time", "1970"),
        ({"time": {"nanos": -1}}, "time", "1970"),
        ({"time": {"seconds": 2**60}}, "time", "9999"),
        ({"value": math.nan}, "value", "finite"),
        ({"value": math.inf}, "value", "finite"),
        ({"value": -math.inf}, "value", "finite"),
        ({"value": 0.5}, "value", "0 or 1"),
        ({"metric": ""}, "metric", "letters"),
        ({"metric": "a b"}, "metric", "letters"),
        ({"metric": "error"}, "metric", "the server itself"),
        ({"metric": "responses"}, "metric", "denominator"),
        ({"response_id": ""}, "response_id", "empty"),
        ({"response_id": "x" * 129}, "response_id", "128"),
        ({"idempotency_key": "x" * 129}, "idempotency_key", "128"),
        ({"idempotency_key": "x\0"}, "idempotency_key", "NUL"),
        ({"idempotency_key": "server:error:r1"}, "idempotency_key", "server"),
        ({"response_id": "r\0"}, "response_id", "NUL"),
        ({"unit": {"experiment": "trial", "unit": "anna"}, "response_id": None}, "unit.experiment", "NAME"),
        ({"unit": {"experiment": "experiments/trial"}, "response_id": None}, "unit.unit", "unit"),
        (
            {"unit": {"experiment": "experiments/trial", "unit": "null"}, "response_id": None},
            "unit.unit",
            "nobody",
        ),
        (
            {"unit": {"experiment": "experiments/trial", "unit": "x" * 257}, "response_id": None},
            "unit.unit",
            "256",
        ),
        (
            {
                "unit": {"experiment": "experiments/trial", "unit": "anna", "unit_hash": HASH},
                "response_id": None,
            },
            "unit.unit_hash",
            "named once",
        ),
        *(
            (
                {"unit": {"experiment": "experiments/trial", "unit_hash": wrong}, "response_id": None},
                "unit.unit_hash",
                "32 of the characters",
            )
            for wrong in ("anna", HASH.upper(), HASH[1:], f"{HASH}0", f"{HASH}\n", f"{HASH[1:]}\0", "g" * 32)
        ),
    ],
)
def test_bad_fields(fields: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        read(**fields)
    assert [v.field for v in caught.value.violations] == [f"outcome.{field}"]


def test_all_bad_fields_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        outcome_of(pb.Outcome(value=math.nan, time={"seconds": -1}), "outcomes[3]", NOW, DECLARED)
    assert [v.field for v in caught.value.violations] == [
        "outcomes[3]",
        "outcomes[3].metric",
        "outcomes[3].value",
        "outcomes[3].time",
    ]


def test_kinds_are_those_of_the_experiment_where_it_is_named() -> None:
    unit = {"experiment": "experiments/another", "unit": "anna"}
    assert (
        outcome_of(pb.Outcome(unit=unit, metric="solved", value=0.5), "outcome", NOW, DECLARED).value == 0.5
    )
