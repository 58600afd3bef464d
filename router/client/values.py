"""What calls take (keyword options) and return (frozen dataclasses): no proto types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from router.types import (
    CONSTRAINT_KINDS,
    AdapterInfo,
    AdapterRef,
    Continuity,
    Decision,
    FinishReason,
    Keeping,
    Sampling,
    TokenLogprob,
    Tool,
    ToolCall,
    Turn,
    Usage,
)

Prompt = str | Sequence[Turn]


class CallOptions(TypedDict, total=False):
    """`timeout` in seconds (None: no deadline); `request_id` is echoed by the server and in its log.

    Options that are not given take the adapter's or the server's default.
    """

    timeout: float | None
    request_id: str


class RouteOptions(CallOptions, total=False):
    """`adapter` pins: NAME, NAME@VERSION or a resource name. `raw` continues the text with no template.

    `conversation` names what the request is a turn of, where the prompt is one turn of it; `fresh` begins it
    anew. `continuity` says how its adapter is carried on, where not as the server is set.

    `mixture` has up to four such names answer together, each with its weight: {"legal": 0.7, "medical": 0.3}.

    `tools` are functions that the model may call, and `tool_choice` says whether it has to: `auto`, `none`,
    `required`, or the name of one. `parallel_tool_calls` False: an answer has one call at most.
    """

    adapter: str
    mixture: Mapping[str, float]
    domain: str
    task: str
    unit: str
    conversation: str
    continuity: Continuity
    fresh: bool
    explain: bool
    system: str
    raw: bool
    tools: Sequence[Tool]
    tool_choice: str
    parallel_tool_calls: bool


class FeedbackOptions(CallOptions, total=False):
    """`corrected` is what the answer should have been, `should_have_been` who should have given it (NAME or
    `base`), `comment` why, in words.

    For a server that does not know the answer any more: `answered_by` (NAME, NAME@VERSION, a resource name or
    `base`), `prompt`, `answer` and `unit` (of the request).
    """

    corrected: str
    should_have_been: str
    comment: str
    answered_by: str
    prompt: str
    answer: str
    unit: str


class GenerateOptions(RouteOptions, total=False):
    """Sampling as in `router.v1.Sampling`, and labels for the server's log.

    What the answer must look like, one of: `json_schema` (text, or the schema as a dict), `regex`, `choices`,
    a Lark `grammar`, `quote` (a text of which the answer is a span), `from_prompt` (the name of a template);
    `unconstrained` takes an adapter's own constraint away. `logit_bias`: what is added to the logits of
    tokens, by their ids. `want_labels`: whether the answer is to have the probability of each of its choices.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    stop: Sequence[str]
    logprobs: int
    logit_bias: Mapping[int, float]
    labels: Mapping[str, str]
    want_labels: bool
    json_schema: str | Mapping[str, Any]
    regex: str
    choices: Sequence[str]
    grammar: str
    quote: str
    from_prompt: str
    unconstrained: bool


ROUTING = (
    "domain",
    "task",
    "unit",
    "explain",
    "conversation",
    "fresh",
)  # options that are hints as they stand
SAMPLING = tuple(field.name for field in fields(Sampling) if field.name != "constraint")
CONSTRAINTS = (*CONSTRAINT_KINDS, "unconstrained")  # at most one of them


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: who answers."""

    response_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of call number `index` of the answer; its first one has `id` and `name`."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """More text, of the answer or of calls; `tokens` is how many tokens it stands for."""

    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """A choice that an answer had, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream that did not fail. `labels` are the likeliest first."""

    reason: FinishReason
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    labels: tuple[Label, ...] = ()
    labels_calibrated: bool = False

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
    tool_calls: tuple[ToolCall, ...] = ()
    labels: tuple[Label, ...] = ()
    labels_calibrated: bool = False


@dataclass(frozen=True, slots=True)
class FeedbackRecorded:
    """What became of feedback: what it was kept with, and whether it replaced earlier feedback."""

    kept: Keeping
    replaced: bool


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
class PluginClassifier:
    """A classifier of a plugin."""

    name: str
    priority: int
    timeout_ms: int
    state: str  # starting, ready, failed, disabled, off
    breaker: str  # closed, open, half-open
    requests: int
    errors: int
    problem: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin of a server. `error` says why it, or its newest version, does not work."""

    name: str
    source: str  # file, entry-point, built-in, folder; named and not there: allow-list, installed
    path: str  # name of its file
    version: str
    digest: str
    enabled: bool
    error: str
    warnings: tuple[str, ...]
    classifiers: tuple[PluginClassifier, ...]
    package: str
    built_in: bool
    hooks: tuple[str, ...] = ()  # that it implements


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


def check_known(given: Iterable[str], known: type) -> None:
    """Raise TypeError for an option that `known` does not have, as a plain signature would."""
    unknown = sorted(set(given) - set(known.__annotations__))
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; options are {', '.join(sorted(known.__annotations__))}"
        )


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine of a server over several. `state`: starting, serving, lost or draining, since then (seconds
    of the epoch).
    """

    name: str
    state: str
    since: float
    problem: str = ""
    running: int = 0
    waiting: int = 0
    adapters: int = 0
    device: str = ""
