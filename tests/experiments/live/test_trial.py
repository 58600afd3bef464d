"""What is kept of one answer."""

from __future__ import annotations

import json

import pytest

from router.experiments.live.trial import built_in, sampling_json
from router.experiments.live.watch import End
from router.experiments.model import BUILT_IN
from router.types import FinishReason, SamplingParams, Usage

USAGE = Usage(completion_tokens=7, time_to_first_token=0.25, total_time=1.5)


def values(end: End) -> dict[str, float]:
    return {o.metric: o.value for o in built_in("r1", end, 5.0)}


def test_a_whole_answer():
    found = built_in("r1", End(FinishReason.LENGTH, "text", USAGE), 5.0)
    assert {o.metric: o.value for o in found} == {
        "time_to_first_token": 0.25,
        "total_time": 1.5,
        "completion_tokens": 7.0,
        "length_stop": 1.0,
        "error": 0.0,
        "cancelled": 0.0,
    }
    assert {o.metric for o in found} == set(BUILT_IN)
    assert {(o.response_id, o.time) for o in found} == {("r1", 5.0)}
    assert len({o.key for o in found}) == 6


def test_the_same_response_has_the_same_keys():
    end = End(FinishReason.STOP, "", USAGE)
    assert [o.key for o in built_in("r1", end, 1.0)] == [o.key for o in built_in("r1", end, 2.0)]


@pytest.mark.parametrize(
    ("end", "error", "cancelled"),
    [
        (End(FinishReason.STOP, "", USAGE), 0.0, 0.0),
        (End(None, "", USAGE, error="ENGINE_FAILED"), 1.0, 0.0),
        (End(None, "", USAGE, cancelled=True), 0.0, 1.0),
    ],
)
def test_ends(end, error, cancelled):
    found = values(end)
    assert (found["error"], found["cancelled"], found["length_stop"]) == (error, cancelled, 0.0)


def test_without_a_token_there_is_no_time_to_one():
    assert "time_to_first_token" not in values(End(None, "", Usage(total_time=1.0), error="ENGINE_FAILED"))


def test_sampling_is_json_with_sorted_keys_and_without_what_is_off():
    text = sampling_json(SamplingParams(max_tokens=8, seed=3, stop=("end",)))
    assert json.loads(text) == {
        "max_tokens": 8,
        "repetition_penalty": 1.0,
        "seed": 3,
        "stop": ["end"],
        "top_p": 1.0,
    }
    assert list(json.loads(text)) == sorted(json.loads(text))
