from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import errors
from router.engine.base import Delta, EngineStatus, Finished, Job, Reading
from router.errors import RouterError
from router.fleet.coding import KINDS, decoded, encoded
from router.fleet.messages import Batch, Cancel, Compile, Event, Load, Post, Read, Submit, Unload
from router.types import Constraint, FinishReason, SamplingParams, TokenLogprob, Usage
from tests.fleet.test_messages import example, kinds


def carried(value: Any) -> Any:
    return decoded(encoded(value))


def test_posts_come_as_they_went() -> None:
    params = SamplingParams(seed=2**63, stop=("\n", "é"), constraint=Constraint("choices", choices=("a",)))
    post = Post(
        "edge",
        7,
        (
            Submit(0, Job("r", (1, 2), params, "d", 1.5, tenant="t", own_constraint=True, shared=1)),
            Read(1, Reading((1,), (2,), 0.5, 3)),
            Compile(2, Constraint("regex", "a"), "t"),
            Load(3, "d", "ticket"),
            Unload(4, "d"),
            Cancel(0),
        ),
    )
    assert carried(post) == post
    assert carried("a text: \ud800") == "a text: \ud800"


def test_batches_come_as_they_went() -> None:
    delta = Delta("x", 1, (TokenLogprob("x", 1, -0.5, (("y", 2, -1.0),)),))
    end = Finished(FinishReason.STOP, Usage(1, 2), "stop")
    status = EngineStatus(running=1, host_adapters=("d", "e"), last_progress=1.5, failed="why")
    batch = Batch(1, (Event(0, delta), Event(0, end), Event(3, 8), Event(4, None)), status)
    again = carried(batch)
    assert again == batch
    assert type(again.events[1].what.reason) is FinishReason


def test_numbers_come_as_float32() -> None:
    numbers = np.arange(6, dtype=np.float32)
    assert (carried(Event(1, numbers)).what == numbers).all()
    assert carried(Event(1, numbers)).what.dtype == np.float32
    assert carried(Event(1, np.zeros(0, np.float32))).what.shape == (0,)
    assert carried(Delta("x", 1, (TokenLogprob("x", 1, np.float32(-0.5), ()),))).logprobs[0].logprob == -0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", kinds())
def test_every_error_is_raised_there_as_it_was_here(kind: type[RouterError]) -> None:
    error = example(kind)
    again = carried(Event(1, error)).what
    known = vars(errors).get(kind.__name__) is kind
    assert (type(again) is kind) if known else isinstance(again, RouterError)
    assert (str(again), again.code, again.args) == (str(error), error.code, error.args)
    assert again.metadata == error.metadata
    assert set(again.__dict__) == set(error.__dict__)


def test_an_error_of_an_engine_of_ones_own_comes_as_what_it_is_a_kind_of() -> None:
    class Mine(errors.Overloaded):
        pass

    assert type(carried(Event(1, Mine("full"))).what) is errors.Overloaded


def test_nothing_else_is_written() -> None:
    for what in (object(), {1, 2}, errors.FieldViolation, ValueError("x"), print):
        with pytest.raises(TypeError):
            encoded(Event(1, what))  # type: ignore[arg-type]


@given(st.binary(max_size=60))
def test_bytes_that_nobody_wrote_are_refused_or_make_plain_values(data: bytes) -> None:
    try:
        found = decoded(data)
    except ValueError:
        return
    allowed = (*KINDS, RouterError, np.ndarray, str, bytes, int, float, bool, tuple, dict, msgpack.ExtType)
    assert found is None or isinstance(found, (*allowed, msgpack.Timestamp))


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb({99: ()}),
        msgpack.packb({3: (1,)}),
        msgpack.packb({0: ((2,), b"abc")}),
        msgpack.packb({1: ("SystemExit", (), {})}),
        msgpack.packb({17: ("no reason",)}),
        b"\xc1",
        b"",
        b"\x91" * 2000,
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decoded(data)
