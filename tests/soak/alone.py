"""Answers of a real base to every prompt under every adapter's weights, one after the other."""

from __future__ import annotations

import json

from router.client import Client
from tests.soak.checks import BASE
from tests.soak.prompts import PROMPTS
from tests.soak.server import Server
from tests.soak.traffic import MAX_TOKENS
from tests.soak.world import ADMIN, ALL, World


def answers_alone(world: World, server: Server) -> dict[tuple[str, str], str]:
    """By weights and prompt; kept as `alone.json` for the callers. Nothing else may run meanwhile."""
    world.journal.read()
    by_weights = {world.journal.current(*ref).weights: f"{ref[0]}@{ref[1]}" for ref in ALL}
    texts: dict[tuple[str, str], str] = {}
    with Client(server.address, token=world.journal.entry(ADMIN).token) as client:
        for weights, adapter in ((BASE, BASE), *by_weights.items()):
            for prompt in PROMPTS:
                answer = client.generate(
                    prompt, adapter=adapter, max_tokens=MAX_TOKENS["real"], temperature=0.0
                )
                texts[weights, prompt] = answer.text
    (world.folder / "alone.json").write_text(
        json.dumps([(weights, prompt, text) for (weights, prompt), text in texts.items()])
    )
    return texts
