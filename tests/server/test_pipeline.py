"""From a request to the engine: sampling in layers, and a prompt that is never cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from router.errors import PromptTooLong
from router.server.pipeline import fit
from router.types import Sampling
from tests.server.helpers import ask, details, failure


def test_said_beats_adapter_beats_default() -> None:
    params = fit(
        Sampling(temperature=0.0), Sampling(temperature=0.7, top_p=0.9, max_tokens=64), 10, 1000, 4096
    )
    assert (params.temperature, params.top_p, params.max_tokens, params.top_k) == (0.0, 0.9, 64, 0)


def test_unsaid_max_tokens_becomes_what_fits() -> None:
    assert fit(Sampling(), Sampling(), 900, 1000, 4096).max_tokens == 100
    assert fit(Sampling(), Sampling(max_tokens=500), 10, 1000, 200).max_tokens == 200
    assert fit(Sampling(min_tokens=300), Sampling(), 10, 1000, 4096).max_tokens == 300


def test_said_max_tokens_must_fit() -> None:
    assert fit(Sampling(max_tokens=100), Sampling(), 900, 1000, 4096).max_tokens == 100
    with pytest.raises(PromptTooLong) as caught:
        fit(Sampling(max_tokens=101), Sampling(), 900, 1000, 4096)
    assert caught.value.metadata == {"limit": "1000", "got": "1001"}


@pytest.mark.parametrize(("prompt", "said"), [(1000, Sampling()), (999, Sampling(min_tokens=2))])
def test_no_room_is_too_long(prompt: int, said: Sampling) -> None:
    with pytest.raises(PromptTooLong):
        fit(said, Sampling(), prompt, 1000, 4096)


def test_an_adapters_min_tokens_yields_to_the_callers_max() -> None:
    assert fit(Sampling(max_tokens=5), Sampling(min_tokens=20), 10, 1000, 4096).min_tokens == 5


async def test_a_prompt_over_the_context_is_never_cut(stubs: SimpleNamespace) -> None:
    refused = await failure(stubs.inference.Generate(ask("x" * 5000)))
    info = details(refused)["ErrorInfo"]
    assert (refused.code().name, info.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
    assert (info.metadata["limit"], info.metadata["got"]) == ("4096", "5001")
