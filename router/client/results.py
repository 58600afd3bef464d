"""What calls return: plain frozen dataclasses, no proto types."""

from __future__ import annotations

from dataclasses import dataclass

from router.types import AdapterInfo, AdapterRef, Decision, FinishReason, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: who answers."""

    response_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Delta:
    """More text; `tokens` is how many tokens it stands for."""

    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream that did not fail."""

    reason: FinishReason
    usage: Usage

    @property
    def finish_reason(self) -> FinishReason:
        """`reason`, by the name that `Answer` has for it."""
        return self.reason


Event = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with the decision that chose who gave it."""

    response_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    decision: Decision
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Length of a prompt under the template of the adapter it would get."""

    prompt_tokens: int
    context_length: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Adapter(AdapterInfo):
    """An adapter version; `etag` changes with every change of it."""

    etag: str = ""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """An adapter dropped from memory, with the bytes given back."""

    adapter: Adapter
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class DefaultChange:
    """The new default version and the one before it."""

    adapter: Adapter
    previous: AdapterRef | None
