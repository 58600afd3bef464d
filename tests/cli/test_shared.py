"""What a server shares with other edges, from its settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from router.cli.fleet import membership_and_links
from router.config import Settings
from router.extensions.sharing.sharing import edge_name
from router.replicas.membership import FixedMembership
from router.replicas.ray import RayLink


def settings(**said: object) -> Settings:
    return Settings(**said)  # type: ignore[arg-type]


def test_no_two_processes_have_one_name() -> None:
    assert edge_name() != edge_name()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"fleet": "blue", "replicas": "2"}, "none is named"),
        ({"fleet": "Blue", "replicas": "2", "ray": "h:1"}, "1 to 63 of a-z"),
        ({"fleet": "blue", "ray": "h:1"}, "say how many"),
    ],
)
def test_a_fleet_has_a_name_in_a_cluster(said: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**said)


def test_replicas_are_this_edges_own_or_those_of_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.replicas.ray.require_ray", lambda: None)
    membership, links = membership_and_links(settings(replicas="2", ray="h:1"))
    assert isinstance(membership, FixedMembership)
    assert isinstance(links("0"), RayLink)
    membership, links = membership_and_links(settings(replicas="2", ray="h:1", fleet="blue"))
    assert isinstance(membership, FixedMembership)
    link = links("1")
    link.kill()  # there is none: nobody is asked
    link.close()
