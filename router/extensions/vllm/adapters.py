"""Which adapters vLLM holds: digest, number and folder, one load at a time.

A number is never given twice and a name is a digest, so what was cached of one version never meets another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from router.engine.base import AdapterArtifact
from router.errors import AdapterRejected, ConfigError, FailedPrecondition
from router.extensions.vllm.link import VllmClient, VllmLora, VllmRequest
from router.extensions.vllm.staging import AdapterStaging

log = logging.getLogger(__name__)
TOKENS = list(range(5, 21))
NEAR = 0.5  # nats; another batch moves a log-probability in bfloat16 by a tenth


@dataclass(frozen=True, slots=True)
class Held:
    """An adapter that vLLM has."""

    lora: VllmLora
    nbytes: int


class VllmAdapters:
    """Loads and drops. Coroutines are for the client's event loop; `get` and `snapshot` for any thread."""

    def __init__(self, client: VllmClient, staging: AdapterStaging) -> None:
        self._client, self._staging = client, staging
        self._held: dict[str, Held] = {}
        self._number = 0
        self._turn = asyncio.Lock()  # loads queued in vLLM would hold up its steps back to back

    def get(self, digest: str) -> Held | None:
        """The adapter, if vLLM has it."""
        return self._held.get(digest)

    def snapshot(self) -> tuple[tuple[str, ...], int]:
        """Digests and their bytes together."""
        held = dict(self._held)
        return tuple(held), sum(one.nbytes for one in held.values())

    async def load(self, artifact: AdapterArtifact) -> int:
        """Stage it and have vLLM read it; returns its bytes. Idempotent by digest.

        Raises AdapterRejected, ResourceExhausted, FailedPrecondition (a part of a mixture is not loaded),
        Unavailable.
        """
        if artifact.invocation_tokens:
            raise AdapterRejected(
                "it is an activated LoRA, acting from its invocation tokens on, and vLLM applies it to whole "
                "prompts: serve it with the engine torch"
            )
        async with self._turn:
            known = self._held.get(artifact.digest)
            if known is None:
                known = self._held[artifact.digest] = await self._load(artifact)
            return known.nbytes

    async def unload(self, digest: str) -> int:
        """Drop it; returns the bytes freed (0 if unknown). No request uses it."""
        async with self._turn:
            held = self._held.pop(digest, None)
            if held is None:
                return 0
            try:
                await self._client.remove(held.lora.number)
            finally:
                self._staging.remove(Path(held.lora.path))
            return held.nbytes

    async def _load(self, artifact: AdapterArtifact) -> Held:
        parts = []
        for digest, weight in artifact.parts:
            part = self._held.get(digest)
            if part is None:
                raise FailedPrecondition("an adapter of the mixture is not loaded any more: ask again")
            parts.append((Path(part.lora.path), weight))
        folder, nbytes = await asyncio.to_thread(self._staging.stage, artifact, parts)
        lora = self._next(artifact.digest, folder)
        try:
            await self._client.add(lora)
        except BaseException:
            await self._forget(lora)
            raise
        return Held(lora, nbytes)

    def _next(self, name: str, folder: Path) -> VllmLora:
        self._number += 1
        return VllmLora(name, self._number, str(folder))

    async def _forget(self, lora: VllmLora) -> None:
        """One that was not loaded stays listed all the same."""
        try:
            await self._client.remove(lora.number)
        except Exception as error:  # what went wrong before is what matters
            log.debug("vLLM did not forget %s: %s", lora.name[:12], error)
        finally:
            self._staging.remove(Path(lora.path))

    # -- the slot that no adapter may have, where kernels take it for the base

    async def guard(self, slots: int) -> None:
        """Fill all of `slots` with an adapter that changes nothing, and keep the last there for good."""
        zero = self._staging.zero()
        filled = [self._next("zero", zero) for _ in range(slots)]
        for lora in filled:
            await self._client.add(lora)
        *others, last = filled
        await self._client.pin(last.number)
        for lora in others:
            await self._client.remove(lora.number)

    async def crowd(self, slots: int) -> list[VllmLora]:
        """So many adapters that change every answer, to try whether they change the base's."""
        loud = self._staging.loud()
        crowd = [self._next("loud", loud) for _ in range(slots)]
        for lora in crowd:
            await self._client.add(lora)
        return crowd

    async def disperse(self, crowd: list[VllmLora]) -> None:
        """Drop them again."""
        for lora in crowd:
            await self._client.remove(lora.number)
        if crowd:
            self._staging.remove(Path(crowd[0].path))


async def check_base_is_alone(client: VllmClient, adapters: VllmAdapters, slots: int) -> None:
    """Raises ConfigError where requests without adapter get an adapter's weights.

    On a CPU vLLM's kernels give such requests the last slot's, so that slot gets an adapter that changes
    nothing and keeps it. Every start tries it, with adapters in all other slots that change all.
    """
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


async def _first_token(client: VllmClient, name: str, lora: VllmLora | None) -> Mapping[int, float]:
    """Log-probabilities of the next token."""
    sampling = {"max_tokens": 1, "temperature": 0.0, "logprobs": 5, "detokenize": False}
    async with aclosing(
        client.generate(VllmRequest(f"start-{name}", TOKENS, sampling, lora, salt=name))
    ) as pieces:
        async for piece in pieces:
            if piece.logprobs and not piece.spoilt:
                return piece.logprobs[0]
    raise ConfigError("vLLM gave no answer in numbers to the first requests: try another dtype")


def _differ(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    likeliest = max(one, key=lambda token: one[token])
    return abs(one[likeliest] - other.get(likeliest, float("-inf"))) > NEAR
