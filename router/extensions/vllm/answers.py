"""One answer as it grows: vLLM's tokens become text, alternatives, an end and what was used.

Text, stop strings and the spelling of tokens are our own, the same as with every other engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from router.engine.base import Delta, Finished, Job
from router.engine.constrained.quote import quote_grammar
from router.engine.output import Detokenizer, Event, EventStream, shared_vocabulary
from router.errors import EngineFailed
from router.extensions.vllm.link import StepOutput, VllmLora, VllmRequest
from router.types import FinishReason, SamplingParams, TokenLogprob, Usage

BACKGROUND = 1_000_000  # of vLLM's priorities, of which the lower goes first
COLDEST = 0.01  # temperature; vLLM takes what is between 0 and that for a mistake
_KEYS: Mapping[str, str] = {"json_schema": "json", "regex": "regex", "grammar": "grammar", "quote": "grammar"}
_numbers = count()


def sampling_of(params: SamplingParams, ends: Sequence[int]) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams. `ends` are tokens that end an answer; stop strings stay with us."""
    made: dict[str, Any] = {
        "max_tokens": params.max_tokens,
        "min_tokens": min(params.min_tokens, params.max_tokens),
        "temperature": max(params.temperature, COLDEST) if params.temperature else 0.0,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "seed": params.seed,
        "logprobs": params.logprobs or None,
        "stop_token_ids": sorted(ends),
        "detokenize": False,
    }
    if params.logit_bias:
        made["logit_bias"] = dict(params.logit_bias)
    constraint = params.constraint
    if constraint is not None:
        shape: Any = list(constraint.choices) if constraint.kind == "choices" else constraint.text
        if constraint.kind == "quote":
            shape = quote_grammar(constraint.text)
        made["structured_outputs"] = {_KEYS.get(constraint.kind, "choice"): shape}
        made["min_tokens"] = 0  # a grammar wins
    return made


class VllmAnswer:
    """A job on its way through vLLM. Touched by the engine's thread only."""

    def __init__(
        self,
        job: Job,
        stream: EventStream,
        tokenizer: Any,
        ends: frozenset[int],
        lora: VllmLora | None = None,
    ) -> None:
        self.job, self.stream, self.lora = job, stream, lora
        self.number = next(_numbers)
        self.reason: FinishReason | None = None  # set by the event that ends it
        self.failed = False
        self._ends = ends
        self._least = job.params.min_tokens if job.params.constraint is None else 0
        self._text = Detokenizer(tokenizer, job.params.stop, job.params.min_tokens)
        self._spell = shared_vocabulary(tokenizer).logprob
        self._generated = self._unsent = self._cached = 0
        self._arrived = time.monotonic()
        self._admitted = self._first = 0.0

    @property
    def over(self) -> bool:
        """Whether its last event was made."""
        return self.failed or self.reason is not None

    @property
    def waited(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self._arrived

    def ask(self, id: str) -> VllmRequest:
        """What vLLM is asked. Beginnings of prompts are found again by the same tenant only."""
        job = self.job
        priority = (BACKGROUND if job.background else 0) - job.priority
        sampling = sampling_of(job.params, sorted(self._ends))
        return VllmRequest(id, list(job.tokens), sampling, self.lora, priority, job.tenant)

    def take(self, piece: StepOutput) -> Iterator[Event]:
        """Events of one step."""
        now = time.monotonic()
        self._admitted = self._admitted or piece.scheduled or now
        self._cached = max(self._cached, piece.cached)
        if piece.spoilt:
            yield self.fail(EngineFailed("the engine failed on this request"))
            return
        for place, token in enumerate(piece.tokens):
            self._first = self._first or now
            logprobs = piece.logprobs[place] if place < len(piece.logprobs) else None
            yield from self._grow(token, logprobs)
            if self.over:
                return
        if piece.end:
            yield self._ended(piece.end)

    def fail(self, error: EngineFailed) -> Event:
        """Its last event, if it goes wrong."""
        self.failed = True
        return error

    def finish(self, reason: FinishReason) -> Finished:
        """Its last event."""
        self.reason = reason
        return Finished(reason, self._usage(), self._text.stopped or "")

    def _grow(self, token: int, logprobs: Mapping[int, float] | None) -> Iterator[Event]:
        self._generated += 1
        if token in self._ends and self._generated > self._least:
            text = self._text.flush()
            if text:
                yield Delta(text, self._unsent)
            yield self.finish(FinishReason.STOP)
            return
        self._unsent += 1
        text, reason = self._text.push(token), None
        if self._text.stopped is not None:
            reason = FinishReason.STOP
        elif self._generated >= self.job.params.max_tokens:
            reason = FinishReason.LENGTH
            text += self._text.flush()
        sent = () if logprobs is None else (self._logprob(token, logprobs),)
        if text or sent:
            yield Delta(text, self._unsent, sent)
            self._unsent = 0
        if reason is not None:
            yield self.finish(reason)

    def _logprob(self, token: int, logprobs: Mapping[int, float]) -> TokenLogprob:
        """The token's own, and of the likeliest as many as were asked for."""
        ranked = sorted(logprobs.items(), key=lambda item: -item[1])[: self.job.params.logprobs]
        return self._spell(token, logprobs[token], ranked)

    def _ended(self, end: str) -> Event:
        """vLLM ended it for a reason of its own."""
        if end in ("stop", "length"):
            return self.finish(FinishReason.STOP if end == "stop" else FinishReason.LENGTH)
        if end == "abort":
            return self.finish(FinishReason.CANCELLED)
        return self.fail(EngineFailed(f"the engine ended this request: {end}"))

    def _usage(self) -> Usage:
        now = time.monotonic()
        return Usage(
            prompt_tokens=len(self.job.tokens),
            cached_tokens=self._cached,
            completion_tokens=self._generated,
            queue_time=max(0.0, (self._admitted or now) - self._arrived),
            time_to_first_token=(self._first or now) - self._arrived,
            total_time=now - self._arrived,
        )
