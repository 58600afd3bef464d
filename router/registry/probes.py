"""Probes: an adapter must answer as expected, and not as the base does."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from router.engine.base import Delta, Engine, Generation, Job, Prompt, last_occurrence
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import (
    AdapterRejected,
    EngineFailed,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    RouterError,
    Unavailable,
)
from router.registry.format.artifact import Inspection
from router.registry.format.folder import CONFIG, PROBES
from router.registry.format.manifest import Probe
from router.registry.format.untrusted import Code, FolderFinding, Severity, show
from router.registry.state import Workers
from router.types import Constraint, FinishReason, Sampling, SamplingParams, Turn

log = logging.getLogger(__name__)

MOST_PROBES = 16  # probes of one adapter, the first ones
PROBES_AT_ONCE = 8  # generations, for all adapters together
_BUSY_SECONDS = 0.1
_DONE = (FinishReason.STOP, FinishReason.LENGTH)


class Prover:
    """Runs probes through the engine like any request, a few at a time.

    An adapter does not serve before they end, however long that takes. Their number and length are bounded.
    """

    def __init__(
        self, engine: Engine, workers: Workers, templates: ConstraintTemplates | None = None
    ) -> None:
        self._engine, self._workers = engine, workers
        self._templates = templates or ConstraintTemplates()
        self._places = asyncio.Semaphore(PROBES_AT_ONCE)

    def key(self, digest: str) -> str:
        """Names an adapter on this base: what passes on one base or precision may fail on another."""
        base = self._engine.info
        return hashlib.sha256(f"{base.digest} {base.precision} {digest}".encode()).hexdigest()[:32]

    async def prove(self, digest: str, inspection: Inspection) -> bool:
        """Run the probes of a loaded adapter; False where it has none.

        Raises AdapterRejected saying which one failed, and how; Unavailable where the engine failed.
        """
        await self._check_constraint(inspection.manifest.generation.constraint)
        probes = inspection.probes[:MOST_PROBES]
        if not probes:
            return False
        prompts = [await self._prompt(inspection, probe) for probe in probes]
        asked = [self._answer(*prompt, adapter) for prompt in prompts for adapter in (digest, None)]
        texts: list[str] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, InvalidRequest):
                raise AdapterRejected(f"a probe cannot run: {answer.message}", codes="probe-failed")
            if isinstance(answer, RouterError):
                raise Unavailable(f"the probes of adapter {inspection.name} could not run: {answer.message}")
            if isinstance(answer, BaseException):
                raise answer
            texts.append(answer)
        precision = self._engine.info.precision
        check_answers(probes, texts[0::2], texts[1::2], precision)
        log.info("%s passed its %d probes on the base in %s", inspection.name, len(probes), precision)
        return True

    async def notes(self, inspection: Inspection) -> Sequence[FolderFinding]:
        """What only the base's own template shows: that an activated LoRA never acts on a conversation."""
        wanted = inspection.invocation_tokens
        if not wanted:
            return ()
        prompt = Prompt((Turn("user", "x"),), template=inspection.manifest.prompt)
        if last_occurrence(await self._workers.run(self._engine.encode, prompt), wanted) >= 0:
            return ()
        message = "conversations do not have these tokens on this base: requests for it will be refused"
        return [FolderFinding(Code.NEVER_ACTIVE, Severity.NOTE, message, f"{CONFIG} alora_invocation_tokens")]

    async def _check_constraint(self, constraint: Constraint | None) -> None:
        """Raises AdapterRejected where no answer on this base could keep to the adapter's own constraint."""
        if constraint is None or constraint.kind == "unconstrained":
            return
        try:
            if constraint.kind == "from_prompt":
                self._templates.check(constraint)
            else:
                await self._engine.compile(constraint)
        except (InvalidRequest, FailedPrecondition) as error:
            reason = error.violations[0].description if isinstance(error, InvalidRequest) else error.message
            raise AdapterRejected(
                f"[generation] {constraint.kind}: {reason}", codes=Code.CONSTRAINT_REFUSED
            ) from error

    async def _prompt(
        self, inspection: Inspection, probe: Probe
    ) -> tuple[str, Sequence[int], SamplingParams]:
        manifest = inspection.manifest
        greedy = Sampling(max_tokens=probe.max_tokens, min_tokens=0, temperature=0.0, logprobs=0)
        prompt = Prompt((Turn("user", probe.prompt),), template=manifest.prompt)
        return (
            probe.prompt,
            await self._workers.run(self._engine.encode, prompt),
            SamplingParams.of(greedy, manifest.generation),
        )

    async def _answer(
        self, prompt: str, tokens: Sequence[int], params: SamplingParams, adapter: str | None
    ) -> str:
        """The answer of the adapter under its constraint, or of the base without it: held to the adapter's
        choices, a base may be right, too."""
        name = f"probe-{adapter[:12] if adapter else 'base'}"
        if adapter is None:
            params = replace(params, constraint=None)
        job = Job(name, tokens, params, adapter, priority=1, own_constraint=True)
        job = await self._templates.prepared(self._engine, job, prompt)
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


def check_answers(
    probes: Sequence[Probe], answers: Sequence[str], base_answers: Sequence[str], precision: str
) -> None:
    """Raises AdapterRejected if an answer is not as expected or all are the base's own.

    `base_answers` are without the adapter's constraint.

    `precision` is what the base runs in, which may not be what the probes were made in.
    """
    if list(answers) == list(base_answers):
        raise AdapterRejected(
            "it has no effect: the base alone gives the same answers to its probes; train it for more steps, "
            f"or put prompts into {PROBES} that it answers otherwise than the base",
            codes="probes-no-effect",
        )
    for number, (probe, answer) in enumerate(zip(probes, answers, strict=True), 1):
        if not probe.passes(answer):
            raise AdapterRejected(
                f"probe {number} of {len(probes)} failed: expected {probe.match} {show(probe.expect)}, "
                f"got {show(answer)} (base in {precision})",
                codes="probe-failed",
            )
