"""The parts of a mixture, found as an adapter by name is."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import AdapterNotFound, InvalidRequest
from router.routing import Scores
from router.routing.router import resolve_mixture
from router.types import EVERYTHING, AdapterProfile, AdapterRef, MixturePart, Reason, Visible
from tests.routing.test_router import start

__all__ = ["start"]
MEDICAL, LEGAL = AdapterRef("medical", "1.0.0"), AdapterRef("legal", "2.1.0")
NAMED = (("adapters/medical", 0.7), ("adapters/legal/versions/2.1.0", 0.3))


async def test_a_mixture_is_what_the_caller_said_and_asks_nobody(kit: Any, start: Any) -> None:
    says = kit.says("c", Scores({"legal": 1.0}))
    router = await start(kit.registered(says))
    decision = await router.route(kit.asking(mixture=NAMED))
    assert decision.mixture == (MixturePart(MEDICAL, 0.7), MixturePart(LEGAL, 0.3))
    assert (decision.adapter, decision.reason, decision.confidence) == (None, Reason.EXPLICIT, 1.0)
    assert (decision.domain, decision.answered_by) == ("", ("mixture", ""))
    assert says.batches == []
    explained = await router.route(kit.asking(mixture=NAMED, explain=True))
    assert (explained.mixture, len(explained.votes)) == (decision.mixture, 1)


async def test_one_adapter_that_weighs_one_is_that_adapter(kit: Any, start: Any) -> None:
    router = await start()
    alone = await router.route(kit.asking(mixture=(("adapters/medical", 1.0),)))
    named = await router.route(kit.asking(adapter="adapters/medical"))
    assert (alone.adapter, alone.mixture, alone.digest) == (named.adapter, (), named.digest)
    half = await router.route(kit.asking(mixture=(("adapters/medical", 0.5),)))
    assert (half.adapter, half.mixture) == (None, (MixturePart(MEDICAL, 0.5),))


@pytest.mark.parametrize("again", ["adapters/medical", "adapters/medical/versions/1.0.0"])
def test_a_version_is_named_once(kit: Any, again: str) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    with pytest.raises(InvalidRequest) as caught:
        resolve_mixture(catalog, (*NAMED, (again, 0.1)), EVERYTHING)
    (violation,) = caught.value.violations
    assert violation.field == "routing.mixture[2].adapter"
    assert violation.description.startswith("medical@1.0.0 is in the mixture already")


def test_two_versions_of_an_adapter_are_two(kit: Any) -> None:
    catalog = kit.catalog([kit.medical, AdapterProfile("medical", "2.0.0")])
    named = (("adapters/medical", 0.5), ("adapters/medical/versions/2.0.0", 0.5))
    assert [str(part) for part in resolve_mixture(catalog, named, EVERYTHING)[1]] == [
        "medical@1.0.0=0.5",
        "medical@2.0.0=0.5",
    ]


def test_a_hidden_part_is_told_as_one_that_nobody_has(kit: Any) -> None:
    catalog, visible = kit.catalog([kit.medical, kit.legal]), Visible(("medical",))
    told = []
    for name in ("legal", "ghost"):
        with pytest.raises(AdapterNotFound) as caught:
            resolve_mixture(catalog, (("adapters/medical", 0.5), (f"adapters/{name}", 0.5)), visible)
        told.append(caught.value.message.replace(name, "NAME"))
    assert told[0] == told[1]
