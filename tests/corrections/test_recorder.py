"""The latest answers: bounded, and no tenant's flood makes another's be forgotten."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from router.corrections.recorder import OVERHEAD, RecentAnswer, RecentAnswers


def answered(text: str | None = None) -> RecentAnswer:
    return RecentAnswer("legal", "classified", 0.9, text)


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.text(max_size=300) | st.none()), max_size=60))
def test_it_never_holds_more_than_it_may(added: list[tuple[str, str | None]]) -> None:
    recent = RecentAnswers(most_answers=7, most_bytes=5000)
    kept: dict[tuple[str, str], RecentAnswer] = {}
    for number, (tenant, text) in enumerate(added):
        recent.add(str(number), tenant, kept.setdefault((str(number), tenant), answered(text)))
        there = {key: value for key, value in kept.items() if recent.get(*key) is not None}
        assert len(recent) == len(there) <= 7
        assert recent.size == sum(one.size for one in there.values()) <= 5000
        assert all(recent.get(*key) is value for key, value in there.items())
        assert (str(number), tenant) in there


def test_an_answer_is_its_tenants_alone() -> None:
    recent = RecentAnswers()
    recent.add("x", "acme", answered())
    assert recent.get("x", "acme") is not None
    assert recent.get("x", "bravo") is None
    assert recent.get("x", "") is None


def test_a_flood_pushes_out_its_own() -> None:
    recent = RecentAnswers(most_answers=100)
    for number in range(10):
        recent.add(f"quiet{number}", "quiet", answered("short"))
    for number in range(1000):
        recent.add(f"loud{number}", "loud", answered("x" * 100))
    assert all(recent.get(f"quiet{number}", "quiet") for number in range(10))
    assert len(recent) == 100
    assert recent.get("loud0", "loud") is None
    assert recent.get("loud999", "loud") is not None


def test_a_text_larger_than_all_is_let_go_at_once() -> None:
    recent = RecentAnswers(most_bytes=2000)
    recent.add("a", "", answered())
    recent.add("b", "", answered("x" * 4000))
    assert (len(recent), recent.size) == (0, 0)


def test_the_size_is_about_what_it_takes() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    recent = RecentAnswers(most_answers=5000)
    for number in range(5000):
        recent.add(f"{number:040x}", "acme", RecentAnswer("legal", "classified", number / 5000, None))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert recent.size == 5000 * OVERHEAD
    assert 0.3 * recent.size < taken < recent.size
