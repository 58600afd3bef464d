"""A stand-in for vLLM, played by a script: tokens that follow from prompt and adapter, deaths and hangs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from router.config import Settings
from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.prompt import PromptEncoder
from router.errors import AdapterRejected, Unavailable
from router.extensions.vllm.base import Base
from router.extensions.vllm.client import Ask, Chances, Facts, Lora, Meter, Piece
from router.extensions.vllm.engine import VllmEngine

SITES = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.0.mlp.up_proj": (8, 4)}
END = 257


class Script:
    """Implements `router.extensions.vllm.client.Client`."""

    def __init__(self, device: str = "cpu", context: int = 256, step_seconds: float = 0.001) -> None:
        self.facts = Facts("0.0", device, "float32", context, blocks=10, block_size=32)
        self.meter = Meter()
        self.step_seconds = step_seconds
        self.asked: list[Ask] = []
        self.running: set[str] = set()
        self.most_at_once = self.most_adapters = 0
        self.adapters: dict[str, int] = {}  # of what runs
        self.aborting = asyncio.Event()  # aborts go through while it is set
        self.aborting.set()
        self.calls: list[tuple[str, int]] = []
        self.held: dict[int, Lora] = {}
        self.pinned: set[int] = set()
        self.rejects = ""
        self.overheard = False  # the base gets the weights of the adapter that is loaded
        self.spoilt = False
        self.dead = False
        self.closed = False
        self.go = asyncio.Event()
        self.go.set()

    async def generate(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        self.asked.append(ask)
        self.running.add(ask.id)
        self.most_at_once = max(self.most_at_once, len(self.running))
        if ask.lora is not None:
            self.adapters[ask.id] = ask.lora.number
            self.most_adapters = max(self.most_adapters, len(set(self.adapters.values())))
        try:
            for piece in self._pieces(ask):
                await asyncio.sleep(self.step_seconds)
                await self.go.wait()
                if self.dead:
                    raise Unavailable("dead")
                self.meter.steps += 1
                self.meter.progress = time.monotonic()
                yield piece
        finally:
            await self.aborting.wait()
            self.running.discard(ask.id)
            self.adapters.pop(ask.id, None)

    async def abort(self, id: str) -> None:
        self.running.discard(id)

    async def add(self, lora: Lora) -> None:
        await self._step("add", lora.number)
        self.held[lora.number] = lora
        if self.rejects:
            raise AdapterRejected(self.rejects)

    async def remove(self, number: int) -> bool:
        await self._step("remove", number)
        return self.held.pop(number, None) is not None

    async def pin(self, number: int) -> None:
        await self._step("pin", number)
        self.pinned.add(number)

    def close(self, seconds: float) -> None:
        self.closed = True

    async def _step(self, what: str, number: int) -> None:
        self.calls.append((what, number))
        await asyncio.sleep(0)
        await self.go.wait()

    def _pieces(self, ask: Ask) -> list[Piece]:
        said = ask.sampling
        if "prompt_logprobs" in said:
            return [Piece((1,), prompt=tuple(-0.5 for _ in ask.tokens[1:]), end="length")]
        heard = ask.lora.name if ask.lora else "crowd" if self.overheard and self._crowded else ""
        tokens = _tokens(ask.tokens, heard, said["max_tokens"])
        if "structured_outputs" in said:
            tokens = list(said["structured_outputs"]["choice"][0].encode())[: said["max_tokens"]]
        ends = ["stop" if "structured_outputs" in said else "length"]
        pieces = [Piece((token,), _chances(token, said.get("logprobs"), heard)) for token in tokens]
        last = Piece(pieces[-1].tokens, pieces[-1].chances, end=ends[0], cached=3, spoilt=self.spoilt)
        return [*pieces[:-1], last]

    @property
    def _crowded(self) -> bool:
        return any(lora.name == "loud" for lora in self.held.values())


def _tokens(prompt: Sequence[int], heard: str, count: int) -> list[int]:
    seed = hashlib.sha256(f"{list(prompt)} {heard}".encode()).digest()
    return [97 + seed[place % 32] % 26 for place in range(count)]


def _chances(token: int, asked: int | None, heard: str) -> tuple[Chances, ...]:
    if not asked:
        return ()
    own = -9.0 if heard else -0.5
    others = {98 + place: own - 1 - place for place in range(asked)}
    return (Chances(own, {**others, token: own}),)


@cache
def tokenizer() -> Any:
    """Of bytes: a token is its byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from router.engine.output import byte_letters

    raw = Tokenizer(models.BPE(vocab=byte_letters(), merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<pad>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")


def base(model: str = "base") -> Base:
    """A base without weights."""
    made = tokenizer()
    config = {"architectures": ["Tiny"], "vocab_size": 260}
    ends = frozenset({END})
    return Base(Path("base"), model, config, made, PromptEncoder(made), ends, SITES, "d" * 64, 1000)


def engine(script: Script, **settings: Any) -> VllmEngine:
    """Not started."""
    made = Settings(**({"engine": "vllm", "slots": 2} | settings))
    return VllmEngine(made, lambda settings, base: script, base)


def artifact(name: str = "medical", rank: int = 2, **more: Any) -> AdapterArtifact:
    """An adapter of one layer whose numbers follow from its name."""
    site, (outputs, inputs) = next(iter(SITES.items()))
    a, b = tensor((rank, inputs), len(name)), tensor((outputs, rank), len(name) + 1)
    digest = hashlib.sha256(name.encode()).hexdigest()
    return AdapterArtifact(name, "1", digest, {site: SiteDelta(a, b, 0.5)}, **more)


def tensor(shape: tuple[int, int], start: int, dtype: str = "F32") -> TensorData:
    """start, start + 1, …"""
    import numpy as np

    from router.engine.checkpoint import stored_as

    values = np.arange(start, start + shape[0] * shape[1], dtype=np.float32)
    return TensorData(dtype, shape, memoryview(stored_as(dtype, values)))
