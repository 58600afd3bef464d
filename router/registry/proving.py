"""Running an adapter's probes: it must answer as expected, and not as the base does."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

from router.engine.base import Delta, Engine, Generation, Job, Prompt
from router.errors import AdapterRejected, EngineFailed, InvalidRequest, Overloaded, RouterError
from router.registry.format.inspection import Inspection
from router.registry.format.probes import Probe
from router.registry.format.text import show
from router.types import FinishReason, Sampling, SamplingParams, Turn

log = logging.getLogger(__name__)

MOST_RUN = 16  # probes of one adapter, the first ones
AT_ONCE = 8  # generations, for all adapters together
_BUSY_SECONDS = 0.1
_DONE = (FinishReason.STOP, FinishReason.LENGTH)

Encode = Callable[[Prompt], Awaitable[list[int]]]


class Verdict(Enum):
    """What probes said, unless they refused the adapter."""

    PROVEN = auto()
    NO_PROBES = auto()
    UNKNOWN = auto()  # the engine was too busy or failed: no fault of the adapter


class Prover:
    """Runs probes through the engine like any request, a few at a time and within `seconds`."""

    def __init__(self, engine: Engine, encode: Encode, seconds: float) -> None:
        self._engine, self._encode, self._seconds = engine, encode, seconds
        self._places = asyncio.Semaphore(AT_ONCE)

    def key(self, digest: str) -> str:
        """Names an adapter on this base: what passes on one base or dtype may fail on another."""
        base = self._engine.info
        return hashlib.sha256(f"{base.digest} {base.dtype} {digest}".encode()).hexdigest()[:32]

    async def prove(self, digest: str, inspection: Inspection) -> Verdict:
        """Run the probes of a loaded adapter. Raises AdapterRejected saying which one failed, and how."""
        probes = inspection.probes[:MOST_RUN]
        if not probes:
            return Verdict.NO_PROBES
        try:
            async with asyncio.timeout(self._seconds):
                prompts = [await self._prompt(inspection, probe) for probe in probes]
                asked = [self._answer(*prompt, adapter) for prompt in prompts for adapter in (digest, None)]
                answers = await asyncio.gather(*asked, return_exceptions=True)
        except TimeoutError:
            log.warning("probes of %s did not end within %.0f s", inspection.name, self._seconds)
            return Verdict.UNKNOWN
        texts: list[str] = []
        for answer in answers:
            if isinstance(answer, InvalidRequest):
                raise AdapterRejected(f"a probe cannot run: {answer.message}", codes="probe-failed")
            if isinstance(answer, RouterError):
                log.warning("probes of %s could not run: %s", inspection.name, answer)
                return Verdict.UNKNOWN
            if isinstance(answer, BaseException):
                raise answer
            texts.append(answer)
        judge(probes, texts[0::2], texts[1::2])
        return Verdict.PROVEN

    async def _prompt(self, inspection: Inspection, probe: Probe) -> tuple[Sequence[int], SamplingParams]:
        manifest = inspection.manifest
        greedy = Sampling(max_tokens=probe.max_tokens, min_tokens=0, temperature=0.0, logprobs=0)
        prompt = Prompt((Turn("user", probe.prompt),), template=manifest.prompt)
        return await self._encode(prompt), SamplingParams.of(greedy, manifest.generation)

    async def _answer(self, tokens: Sequence[int], params: SamplingParams, adapter: str | None) -> str:
        job = Job(f"probe-{adapter[:12] if adapter else 'base'}", tokens, params, adapter, priority=1)
        text: list[str] = []
        async with self._places:
            generation = await self._submit(job)
            try:
                async for event in generation:
                    if isinstance(event, Delta):
                        text.append(event.text)
                    elif event.reason not in _DONE:
                        raise EngineFailed(f"a probe ended with {event.reason}")
            finally:
                generation.cancel()
        return "".join(text)

    async def _submit(self, job: Job) -> Generation:
        while True:
            try:
                return self._engine.submit(job)
            except Overloaded:
                await asyncio.sleep(_BUSY_SECONDS)


def judge(probes: Sequence[Probe], answers: Sequence[str], base_answers: Sequence[str]) -> None:
    """Raises AdapterRejected if an answer is not as expected or all are the base's own."""
    if list(answers) == list(base_answers):
        raise AdapterRejected(
            "it has no effect: its answers to all probes equal the base's", codes="probes-no-effect"
        )
    for number, (probe, answer) in enumerate(zip(probes, answers, strict=True), 1):
        if not probe.passes(answer):
            raise AdapterRejected(
                f"probe {number} of {len(probes)} failed: expected {probe.match} {show(probe.expect)}, "
                f"got {show(answer)}",
                codes="probe-failed",
            )
