"""Whether the base is alone: on a CPU vLLM's kernels give a request without adapter the last slot's.

So that slot gets an adapter that changes nothing and keeps it. That this works is tried at every start, with
adapters in all other slots that nobody could overhear.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from router.errors import ConfigError
from router.extensions.vllm.adapters import Adapters
from router.extensions.vllm.client import Ask, Chances, Client, Lora

TOKENS = list(range(5, 21))
NEAR = 0.5  # nats; another batch moves a log-probability in bfloat16 by a tenth


async def check_base_is_alone(client: Client, adapters: Adapters, slots: int) -> None:
    """Guard the last of `slots` and try it. Raises ConfigError where the base hears an adapter."""
    await adapters.guard(slots)
    alone = await _first_token(client, "alone", None)
    crowd = await adapters.crowd(slots - 1)
    together, adapted = await asyncio.gather(
        _first_token(client, "beside", None), _first_token(client, "crowd", crowd[0] if crowd else None)
    )
    await adapters.disperse(crowd)
    if _differ(alone, together):
        raise ConfigError(
            "this vLLM gives requests without adapter the weights of somebody's adapter (vLLM issue 48421), "
            "and the slot that is kept free for them does not help: use another version"
        )
    if crowd and not _differ(alone, adapted):
        raise ConfigError("this vLLM loads adapters and does not apply them: use another version")


async def _first_token(client: Client, name: str, lora: Lora | None) -> Chances:
    """What it would say next, and how sure it is."""
    sampling = {"max_tokens": 1, "temperature": 0.0, "logprobs": 5, "detokenize": False}
    async with aclosing(client.generate(Ask(f"start-{name}", TOKENS, sampling, lora, salt=name))) as pieces:
        async for piece in pieces:
            if piece.chances and not piece.spoilt:
                return piece.chances[0]
    raise ConfigError("vLLM gave no answer in numbers to the first requests: try another dtype")


def _differ(one: Chances, adapted: Chances) -> bool:
    likeliest = max(one.all, key=lambda token: one.all[token])
    return abs(one.all[likeliest] - adapted.all.get(likeliest, float("-inf"))) > NEAR
