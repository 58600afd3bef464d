"""Masks are made by another thread, and one that takes too long fails its row alone."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.constrained import masks
from router.engine.constrained.masks import MaskMaker


class Scripted:
    """A follower that says what is done with it."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.raises = seconds, error
        self.thread, self.kept_going, self.error, self.allowed = "", False, None, object()

    def make_mask(self, keep_going: bool) -> None:
        self.thread, self.kept_going = threading.current_thread().name, keep_going
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        if self.raises:
            raise self.raises

    def give_up(self, why: str) -> None:
        self.error = why


def row(follower: Any, generated: int = 5, least: int = 0, truncates: bool = True) -> Any:
    return SimpleNamespace(
        follower=follower,
        generated=generated,
        job=SimpleNamespace(params=SimpleNamespace(min_tokens=least)),
        sampling=SimpleNamespace(truncates=truncates, allowed=None),
    )


@pytest.fixture
def maker() -> Any:
    made = MaskMaker()
    yield made
    made.close()


def test_rows_that_need_theirs_get_it_meanwhile(maker: MaskMaker) -> None:
    one, other, looks = Scripted(), Scripted(), Scripted()
    rows = [row(one, least=9), row(None), row(other), row(looks, truncates=False)]
    with maker.made_meanwhile(rows):
        pass
    assert [follower.thread for follower in (one, other, looks)] == ["masks", "masks", ""]
    assert (one.kept_going, other.kept_going) == (True, False)
    assert [made.sampling.allowed for made in rows] == [one.allowed, None, other.allowed, None]


def test_without_such_rows_no_thread_starts(maker: MaskMaker) -> None:
    before = threading.active_count()
    with maker.made_meanwhile([row(None), row(Scripted(), truncates=False)]):
        assert threading.active_count() == before


def test_a_row_that_was_refused_gets_its_own(maker: MaskMaker) -> None:
    refused = row(Scripted(), least=9, truncates=False)
    maker.make([refused])
    assert (refused.follower.thread, refused.follower.kept_going) == ("masks", True)
    assert refused.sampling.allowed is refused.follower.allowed


def test_masks_are_there_before_a_failing_step_is_told(maker: MaskMaker) -> None:
    follower = Scripted(0.05)
    with pytest.raises(RuntimeError), maker.made_meanwhile([row(follower)]):
        raise RuntimeError
    assert follower.thread == "masks"


def test_one_that_raises_fails_alone(maker: MaskMaker) -> None:
    broken, fine = Scripted(error=RuntimeError("no")), Scripted()
    with maker.made_meanwhile([row(broken), row(fine)]):
        pass
    assert (broken.error is not None, fine.error, fine.thread) == (True, None, "masks")


@pytest.mark.slow
def test_one_that_takes_too_long_fails_alone(maker: MaskMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MASK_SECONDS", 0.2)
    first, slow, last = Scripted(), Scripted(1.0), Scripted()
    with maker.made_meanwhile([row(first), row(slow), row(last)]):
        pass
    assert (first.error, last.error, last.thread) == (None, None, "masks")
    assert "too long" in str(slow.error)
    again = Scripted()
    with maker.made_meanwhile([row(again)]):
        pass
    assert again.thread == "masks"
