"""Several edges that share replicas in a real Ray, in a network that has loopback only."""

from __future__ import annotations

from functools import partial

import pytest

from tests.replicas import test_ray_link
from tests.replicas.test_ray_link import _possible  # noqa: F401 - a fixture for this module, too

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

facts = partial(test_ray_link.facts, module="tests.replicas.edges_scenarios")
ANSWER = "[92a5dc04] one two three"


def test_two_edges_share_replicas_and_none_costs_the_other_anything() -> None:
    found = facts("shared")
    assert (found["same"], found["replicas"], found["keepers"], found["homes"]) == (True, 2, 1, [1])
    assert "its slots is 5, that of the fleet 4" in found["refused"]
    assert found["cut"]  # what others reach is not ended
    assert found["most"] == [2, 2]  # both edges miss a replica, and have one new one together
    assert found["again"] == {"again": ["0", "1"], "mine": ["0", "1"], "text": ANSWER}
    assert found["streams"] == [[200, "stop"]]
    assert found["kept"]
    assert found["hung"] == {"new": 1, "all": 2, "text": ANSWER}
    assert found["left"] == 2  # they outlive their edges for a while


def test_a_keeper_is_lost_and_another_knows_what_it_knew() -> None:
    found = facts("keeper")
    assert found["stream"] == [200, "stop"]
    assert found["same"]
    assert (found["bounds"], found["members"]) == ([3, 3], ["0", "1", "2"])
    assert found["stay"] == 3
    assert found["gone"] < 30


def test_edges_and_replicas_are_replaced_and_nobody_who_was_let_in_is_lost() -> None:
    found = facts("rolling")
    assert found["lost"] == []
    assert found["answered"] > 150
    assert found["code"] == 0
    assert found["same"]
    assert (found["steps"], found["kept"]) == (["done", "done"], 0)
