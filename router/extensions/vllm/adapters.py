"""Which adapters vLLM holds: digest, number and folder, one load at a time.

A number is never given twice and a name is a digest, so what was cached of one version never meets another.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from router.engine.base import AdapterArtifact
from router.errors import AdapterRejected, FailedPrecondition
from router.extensions.vllm.client import Client, Lora
from router.extensions.vllm.staging import Staging

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """An adapter that vLLM has."""

    lora: Lora
    nbytes: int


class Adapters:
    """Loads and drops. Coroutines are for the client's event loop; `get` and `snapshot` for any thread."""

    def __init__(self, client: Client, staging: Staging) -> None:
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

    def _next(self, name: str, folder: Path) -> Lora:
        self._number += 1
        return Lora(name, self._number, str(folder))

    async def _forget(self, lora: Lora) -> None:
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

    async def crowd(self, slots: int) -> list[Lora]:
        """So many adapters that nobody could overhear, to try whether the base hears them."""
        loud = self._staging.loud()
        crowd = [self._next("loud", loud) for _ in range(slots)]
        for lora in crowd:
            await self._client.add(lora)
        return crowd

    async def disperse(self, crowd: list[Lora]) -> None:
        """Drop them again."""
        for lora in crowd:
            await self._client.remove(lora.number)
        if crowd:
            self._staging.remove(Path(crowd[0].path))
