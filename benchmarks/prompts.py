"""The standard work in numbers: 16 requests of about 90 prompt tokens, 64 new tokens each. Needs no torch."""

from __future__ import annotations

import random

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, RANK = 16, 90, 64, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prompts(vocabulary: int, seed: int = 0, count: int = REQUESTS) -> list[list[int]]:
    """Random token ids (no special ones), all different from the first token on: no prefix is shared."""
    rng = random.Random(seed)
    return [
        [rng.randrange(1000, vocabulary) for _ in range(PROMPT_TOKENS + rng.randint(-8, 8))]
        for _ in range(count)
    ]
