"""What is no unit."""

from __future__ import annotations

import uuid

import pytest

from router.experiments.assignment import is_missing, never_repeats, request_id_like

NOW = 1_700_000_000.0
UUID7 = f"{int(NOW * 1e3):012x}"
UUID7 = f"{UUID7[:8]}-{UUID7[8:]}-7abc-8def-0123456789ab"
ULID = "01HF7YAT00" + "ABCDEFGHJKMNPQRS"


@pytest.mark.parametrize(
    "unit",
    [
        "req-abc123",
        "chatcmpl-9xYz",
        "trace:77",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        UUID7,
        UUID7.replace("-", ""),
        ULID,
        "1700000000123",
    ],
)
def test_what_looks_like_a_request_id(unit):
    assert request_id_like(unit, now=NOW)


@pytest.mark.parametrize(
    "unit", ["user-17", "alice@example.org", "request", "4711", str(uuid.UUID(int=77, version=4)), "naïve"]
)
def test_what_does_not(unit):
    assert request_id_like(unit, request_id="another", now=NOW) is None


def test_an_id_that_carries_an_old_time_may_be_a_users():
    assert request_id_like(UUID7, now=NOW + 86_400) is None
    assert request_id_like(ULID, now=NOW + 86_400) is None


def test_a_uuid_of_version_1_carries_its_time():
    made = uuid.uuid1()
    assert request_id_like(str(made), now=(made.time - 0x01B21DD213814000) / 1e7)
    assert request_id_like(str(made), now=0.0) is None


def test_the_id_of_the_request_itself():
    assert request_id_like("anything", request_id="anything") == "is the id of this request"


def test_units_that_never_repeat():
    assert never_repeats(2000, 1995)
    assert not never_repeats(2000, 900)
    assert not never_repeats(500, 500)


def test_words_for_nothing():
    assert is_missing(" None ")
    assert not is_missing("nonesuch")
