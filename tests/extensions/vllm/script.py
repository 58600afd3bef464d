"""A stand-in for vLLM, played by a script: tokens that follow from prompt and adapter, deaths and hangs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from router.config import Settings
from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.prompt import PromptEncoder
from router.errors import AdapterRejected, Unavailable
from router.extensions.vllm.base import VllmBase
from router.extensions.vllm.engine import VllmEngine
from router.extensions.vllm.link import Facts, StepMeter, StepOutput, VllmClient, VllmLora, VllmRequest

SITES = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.0.mlp.up_proj": (8, 4)}
END = 257


class Script(VllmClient):
    """A client without vLLM."""

    def __init__(self, device: str = "cpu", context: int = 256, step_seconds: float = 0.001) -> None:
        self.facts = Facts("0.0", device, "float32", context, blocks=10, block_size=32)
        self.meter = StepMeter()
        self.step_seconds = step_seconds
        self.asked: list[VllmRequest] = []
        self.running: set[str] = set()
        self.most_at_once = self.most_adapters = 0
        self.adapters: dict[str, int] = {}  # of what runs
        self.aborting = asyncio.Event()  # aborts go through while it is set
        self.aborting.set()
        self.calls: list[tuple[str, int]] = []
        self.held: dict[int, VllmLora] = {}
        self.pinned: set[int] = set()
        self.rejects = ""
        self.overheard = False  # the base gets the weights of the adapter that is loaded
        self.spoilt = False
        self.died = False
        self.closed = False
        self.go = asyncio.Event()
        self.go.set()

    async def generate(self, ask: VllmRequest) -> AsyncGenerator[StepOutput, None]:
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
                if self.died:
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

    async def add(self, lora: VllmLora) -> None:
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

    @property
    def dead(self) -> bool:
        return self.died

    def close(self, seconds: float) -> None:
        self.closed = True

    async def _step(self, what: str, number: int) -> None:
        self.calls.append((what, number))
        await asyncio.sleep(0)
        await self.go.wait()

    def _pieces(self, ask: VllmRequest) -> list[StepOutput]:
        sampling = ask.sampling
        if "prompt_logprobs" in sampling:
            return [StepOutput((1,), prompt=tuple(-0.5 for _ in ask.tokens[1:]), end="length")]
        adapter = ask.lora.name if ask.lora else "crowd" if self.overheard and self._crowded else ""
        tokens = _tokens(ask.tokens, adapter, sampling["max_tokens"])
        if "structured_outputs" in sampling:
            tokens = list(sampling["structured_outputs"]["choice"][0].encode())[: sampling["max_tokens"]]
        ends = ["stop" if "structured_outputs" in sampling else "length"]
        pieces = [
            StepOutput((token,), _logprobs(token, sampling.get("logprobs"), adapter)) for token in tokens
        ]
        last = StepOutput(pieces[-1].tokens, pieces[-1].logprobs, end=ends[0], cached=3, spoilt=self.spoilt)
        return [*pieces[:-1], last]

    @property
    def _crowded(self) -> bool:
        return any(lora.name == "loud" for lora in self.held.values())


def _tokens(prompt: Sequence[int], adapter: str, count: int) -> list[int]:
    seed = hashlib.sha256(f"{list(prompt)} {adapter}".encode()).digest()
    return [97 + seed[place % 32] % 26 for place in range(count)]


def _logprobs(token: int, asked: int | None, adapter: str) -> tuple[Mapping[int, float], ...]:
    if not asked:
        return ()
    own = -9.0 if adapter else -0.5
    others = {98 + place: own - 1 - place for place in range(asked)}
    return ({**others, token: own},)


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


def base(model: str = "base") -> VllmBase:
    """A base without weights."""
    made = tokenizer()
    config = {"architectures": ["Tiny"], "vocab_size": 260}
    ends = frozenset({END})
    return VllmBase(Path("base"), model, config, made, PromptEncoder(made), ends, SITES, "d" * 64, 1000)


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
