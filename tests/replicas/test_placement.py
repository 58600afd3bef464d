from __future__ import annotations

import random
from collections import Counter

from router.replicas.placement import ABSENT, Placement


def of(*replicas: str) -> Placement:
    """With these replicas up."""
    placement = Placement(random.Random(1))
    for replica in replicas:
        placement.join(replica)
    return placement


def test_a_request_goes_where_fewest_are() -> None:
    placement = of(*"0123")
    for _ in range(40):
        placement.begin(placement.choose("0123"))
    assert placement.held == dict.fromkeys("0123", 10)
    placement.end("2")
    assert placement.choose("0123") == "2"


def test_among_equals_each_gets_some() -> None:
    placement = of(*"01")
    assert Counter(placement.choose("01") for _ in range(100)).keys() == {"0", "1"}


def test_a_replica_without_the_adapter_is_chosen_where_more_wait_than_a_load_is_worth() -> None:
    placement = of(*"01")
    placement.settle("a", "0", 8)
    chosen = []
    for _ in range(ABSENT + 4):
        chosen.append(placement.choose("01", "a"))
        placement.begin("0")
    assert chosen[:ABSENT] == ["0"] * ABSENT
    assert chosen[ABSENT + 1 :] == ["1"] * 3


def test_an_adapter_is_loaded_where_fewest_requests_and_then_fewest_bytes_are() -> None:
    placement = of(*"012")
    placement.begin("0")
    placement.settle("large", "1", 100)
    placement.settle("small", "2", 10)
    assert placement.new_home("a", "012") == "2"
    placement.settle("a", "2", 10)
    assert placement.new_home("a", "012") == "1"
    assert placement.new_home("a", "2") == ""
    assert placement.used == {"1": 100, "2": 20}


def test_what_was_only_on_a_lost_replica_is_named() -> None:
    placement = of(*"01")
    for name in "01":
        placement.settle("both", name, 8)
    placement.settle("one", "1", 8)
    placement.begin("1")
    assert placement.leave("1") == ("one",)
    placement.end("1")  # late
    assert (placement.homes("both"), placement.homes("one")) == (("0",), ())
    placement.settle("one", "1", 8)  # whose load ended too late
    assert placement.homes("one") == ()
    placement.forget("both")
    assert placement.living("0") == []
    assert placement.used["0"] == placement.held["1"] == 0
