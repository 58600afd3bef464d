"""Plain values that cross layers. No proto type and no torch type appears here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_type_hints

Role = Literal["system", "user", "assistant", "tool"]
HIDDEN_STATES = "hidden states"  # what engines have of a base, and classifiers may need


Keeping = Literal["off", "labels", "texts"]  # what is kept of feedback, from nothing to all
KEEPINGS: tuple[Keeping, ...] = ("off", "labels", "texts")


def weaker(one: Keeping, other: Keeping) -> Keeping:
    """The one that keeps less."""
    return min(one, other, key=KEEPINGS.index)


Continuity = Literal["adaptive", "sticky", "none"]  # how a conversation carries its adapter on
CONTINUITIES: tuple[Continuity, ...] = ("adaptive", "sticky", "none")
Progress = Literal["", "initial", "kept", "switched"]  # of a conversation, by a decision


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the context length was reached
    TOOL_CALLS = "tool_calls"  # of an answer that calls functions; no engine says it
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class Reason(StrEnum):
    """Why a request went where it went."""

    EXPLICIT = "explicit"  # the caller named the adapter
    HINT = "hint"  # the caller's domain or task left one candidate
    CLASSIFIED = "classified"  # a classifier was sure
    ABSTAINED = "abstained"  # none was sure: the base answers
    FALLBACK = "fallback"  # no classifier could be asked: the base answers


class AdapterState(StrEnum):
    """Where an adapter version is in its life."""

    DISCOVERED = "discovered"  # on disk, header checked, weights not read
    LOADING = "loading"
    READY = "ready"  # in host memory or on the device
    OFFLOADED = "offloaded"  # was loaded, weights dropped, loads again on demand
    QUARANTINED = "quarantined"  # refused; `error` says why


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the model. `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    An assistant's turn may have `calls` and no text. A turn of the role `tool` is what the call `call_id` of
    `function` returned.
    """

    role: Role
    text: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    function: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the caller can run. `parameters` is the JSON Schema of its arguments, as text; empty:
    it has none."""

    name: str
    description: str = ""
    parameters: str = ""


ToolChoice = Literal["auto", "none", "required"]
MAX_TOOLS, MAX_TOOL_CALLS = 128, 128  # of a request; of a turn
MAX_TOOL_NAME, MAX_TOOL_DESCRIPTION, MAX_CALL_ID = 64, 8192, 256  # bytes


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a request, and whether one is to be called: with `required` the one named `function`,
    or any where it is empty. `single`: an answer has one call at most."""

    functions: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    function: str = ""
    single: bool = False

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the answer may call."""
        if self.choice == "none":
            return ()
        return tuple(one for one in self.functions if self.function in ("", one.name))


ConstraintKind = Literal[
    "json_schema", "regex", "choices", "grammar", "quote", "from_prompt", "unconstrained"
]
CONSTRAINT_KINDS: tuple[ConstraintKind, ...] = (
    "json_schema",
    "regex",
    "choices",
    "grammar",
    "quote",
    "from_prompt",
)
MAX_CONSTRAINT_BYTES = 65536  # of a schema, an expression, a grammar or a text, and of all choices together
MAX_CHOICES, MAX_CHOICE_BYTES = 1024, 1024


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like. `unconstrained` takes back what weaker layers say.

    `text` is a JSON Schema, a regular expression that the whole answer matches, a Lark grammar, a text that
    is quoted, or the name of a template that makes one of the others of a prompt (`from_prompt`).
    """

    kind: ConstraintKind
    text: str = ""
    choices: tuple[str, ...] = ()

    @property
    def value(self) -> str | tuple[str, ...]:
        """What goes with the kind: the choices, or the text."""
        return self.choices if self.kind == "choices" else self.text


LogitBias = tuple[tuple[int, float], ...]  # token ids, each with what is added to its logit, by id
MAX_BIASES, MAX_BIAS = 300, 100.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling as a caller or manifest gives it: None means "not said"."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    logit_bias: LogitBias | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers of one kind, closed at `high`, closed at `low` unless `open_low`."""

    kind: type[int] | type[float]
    low: float
    high: float
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and value <= self.high  # false for NaN, too

    def __str__(self) -> str:
        digits = "d" if self.kind is int else "g"
        return f"{'(' if self.open_low else '['}{self.low:{digits}}, {self.high:{digits}}]"


INT32, INT64 = (1 << 31) - 1, (1 << 63) - 1
MAX_STOPS, MAX_STOP_BYTES = 16, 256
# Entries of one request.
MAX_MESSAGES, MAX_LABELS, MAX_OUTCOMES = 256, 16, 1000


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling after defaults are applied, as the engine uses it.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; logprobs is the
    number of alternatives to report for each token (0: none). A number has its range beside it, as the
    comments of router.v1.Sampling state it, and its default.
    """

    max_tokens: Annotated[int, Range(int, 1, INT32)] = 256
    min_tokens: Annotated[int, Range(int, 0, INT32)] = 0
    temperature: Annotated[float, Range(float, 0, 2)] = 0.0
    top_p: Annotated[float, Range(float, 0, 1, open_low=True)] = 1.0
    top_k: Annotated[int, Range(int, 0, INT32)] = 0
    min_p: Annotated[float, Range(float, 0, 1)] = 0.0
    repetition_penalty: Annotated[float, Range(float, 0, 2, open_low=True)] = 1.0
    frequency_penalty: Annotated[float, Range(float, -2, 2)] = 0.0
    presence_penalty: Annotated[float, Range(float, -2, 2)] = 0.0
    seed: Annotated[int | None, Range(int, 0, INT64)] = None
    stop: tuple[str, ...] = ()
    logprobs: Annotated[int, Range(int, 0, 20)] = 0
    constraint: Constraint | None = None  # never `unconstrained`
    logit_bias: LogitBias = ()

    @classmethod
    def of(cls, *layers: Sampling) -> SamplingParams:
        """Merge layers, strongest first, over the defaults."""
        values: dict[str, Any] = {}
        for name in _SAMPLING:
            for layer in layers:
                if (value := getattr(layer, name)) is not None:
                    values[name] = value
                    break
        if "constraint" in values and values["constraint"].kind == "unconstrained":
            del values["constraint"]
        return cls(**values)


_SAMPLING = tuple(field.name for field in fields(SamplingParams))
SAMPLING_RANGES: dict[str, Range] = {
    name: found
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items()
    for found in getattr(hint, "__metadata__", ())
}


@dataclass(frozen=True, slots=True)
class RoutingHints:
    """What the caller says about routing. `adapter` is a resource name and pins it; so are the names in
    `mixture`, each with its weight. `conversation` names what the request belongs to; `fresh` begins it
    anew. Where `continuity` is empty it is adaptive."""

    adapter: str = ""
    domain: str = ""
    task: str = ""
    unit: str = ""
    explain: bool = False
    mixture: tuple[tuple[str, float], ...] = ()
    conversation: str = ""
    continuity: Continuity | Literal[""] = ""
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Visible:
    """Names, of adapters or experiments, that a caller may know of, by globs: `legal-*`, `*` for all."""

    globs: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(fnmatchcase(name, glob) for glob in self.globs)

    @property
    def everything(self) -> bool:
        """Whether nothing is hidden."""
        return "*" in self.globs


EVERYTHING = Visible(("*",))


@dataclass(frozen=True, slots=True)
class Request:
    """One request, validated. Exactly one of `turns` and `raw_prompt` is set.

    `request_id` is the server's own, unlike any other, and the id of the answer: whatever is kept of the
    request is kept under it. `caller_id` is what the caller calls it, which may be anything.
    """

    request_id: str
    turns: tuple[Turn, ...] = ()
    raw_prompt: str | None = None
    sampling: Sampling = Sampling()
    routing: RoutingHints = RoutingHints()
    labels: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None  # time.monotonic() seconds
    caller_id: str = ""
    visible: Visible = EVERYTHING  # what the caller must not learn of is not there for this request
    tenant: str = ""  # of the caller; "" where clients do not authenticate
    share: float = 1.0  # of the fair queue, against other tenants'
    experiments: Visible = EVERYTHING  # those that the caller is told of; it takes part in others, too
    tools: Tools = Tools()  # functions that the model may call; routing does not read them
    want_labels: bool | None = None  # probabilities of its choices; None: as the adapter says

    @property
    def text(self) -> str:
        """What classifiers read: the last user turn, or the raw prompt."""
        if self.raw_prompt is not None:
            return self.raw_prompt
        return next((t.text for t in reversed(self.turns) if t.role == "user"), "")


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter version by name."""

    name: str
    version: str

    @property
    def resource(self) -> str:
        """The resource name, `adapters/NAME/versions/VERSION`."""
        return f"adapters/{self.name}/versions/{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


MAX_MIXTURE_PARTS, MAX_MIXTURE_WEIGHT = 4, 10.0


@dataclass(frozen=True, slots=True)
class MixturePart:
    """An adapter version in a mixture, and what it weighs (in thousandths)."""

    ref: AdapterRef
    weight: float

    def __str__(self) -> str:
        return f"{self.ref}={self.weight:g}"


PLACEHOLDER = "{prompt}"  # where a template takes the text of the user


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """An adapter's `[prompt]`: `{prompt}` in `template` is replaced literally, nothing else is."""

    system: str = ""
    template: str = PLACEHOLDER

    @property
    def problem(self) -> str:
        """What is wrong with `template`, empty if nothing is. A second placeholder would copy the request."""
        before, found, after = self.template.partition(PLACEHOLDER)
        if not found:
            return f"must contain {PLACEHOLDER}"
        again = after.find(PLACEHOLDER)
        if again < 0:
            return ""
        position = len(before) + len(found) + again + 1
        return f"must contain {PLACEHOLDER} once, and has it again at character {position}"


@dataclass(frozen=True, slots=True)
class AdapterProfile:
    """What routing may know of an adapter: the default version of each name."""

    name: str
    version: str
    domain: str = ""
    task: str = ""
    description: str = ""
    examples: tuple[str, ...] = ()
    negative_examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    needs_passage: bool = False  # it answers from a passage: not chosen for a request without one


@dataclass(frozen=True, slots=True)
class Override:
    """An operator set a default version that had not passed the gate."""

    version: str
    by: str  # who, as far as the server can tell
    time: float  # unix seconds
    reason: str = ""  # what the operator said
    finding: str = ""  # what the gate said then
    weights_sha256: str = ""  # the weights it is about; empty until they were read


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One row of `ListAdapters`."""

    ref: AdapterRef
    state: AdapterState
    digest: str = ""  # sha256 hex; empty until the weights were read once
    domain: str = ""
    task: str = ""
    description: str = ""
    base_model: str = ""
    rank: int = 0  # the largest over all sites
    target_modules: tuple[str, ...] = ()
    size_bytes: int = 0
    default: bool = False
    pinned: bool = False
    leases: int = 0
    last_used: float | None = None  # unix seconds
    since: float = 0.0  # when this server found it, in unix seconds
    error: str = ""
    folder: str = ""  # where its files are
    notes: tuple[str, ...] = ()  # what was normalised at load
    routable: bool = False  # requests that name no adapter may come to it
    routing: str = ""  # one sentence: why requests that name no adapter may come to it, or may not
    gate: str = ""  # why it is not routed to by itself; empty if it passed the gate
    gate_advice: str = ""  # what to do about that
    override: Override | None = None  # the gate was overruled for it
    invocation_tokens: tuple[int, ...] = ()  # from which on it acts; none: from the beginning
    built_in: bool = False  # it comes with lora-router


class AdapterEventKind(StrEnum):
    """What a lifecycle event reports."""

    ADDED = "added"
    CHANGED = "changed"  # state, default or pin
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """A lifecycle event with the adapter as it is after it."""

    kind: AdapterEventKind
    adapter: AdapterInfo
    time: float  # unix seconds


class VoteError(StrEnum):
    """Why a classifier's vote was lost."""

    TIMEOUT = "timeout"
    BREAKER_OPEN = "breaker-open"  # it failed too often, and is left alone for a while
    NOT_READY = "not-ready"  # not warmed up or fitted yet
    DISABLED = "disabled"
    RAISED = "raised"
    INVALID = "invalid"  # what it returned is no answer
    OTHER = "other"  # one that a newer server knows


@dataclass(frozen=True, slots=True)
class Vote:
    """What one classifier said of one request."""

    classifier: str
    scores: Mapping[str, float] = field(default_factory=dict)  # adapter name -> confidence in [0, 1]
    declined: bool = False
    error: VoteError | Literal[""] = ""  # never exception text
    latency: float = 0.0  # seconds
    evidence: str = ""


VotesByClassifier = dict[str, dict[str, Vote]]  # votes by the text that they are on, then by classifier


@dataclass(frozen=True, slots=True)
class LostVote:
    """A vote that the decision had to do without."""

    classifier: str
    reason: VoteError


@dataclass(frozen=True, slots=True)
class Decision:
    """What routing concluded. `adapter` None means the base, or where there is a `mixture`, that."""

    adapter: AdapterRef | None
    reason: Reason
    digest: str = ""
    domain: str = ""
    task: str = ""
    confidence: float = 0.0
    classifier: str = ""
    threshold: float = 0.0
    votes: tuple[Vote, ...] = ()
    latency: float = 0.0  # seconds
    experiment: str = ""
    arm: str = ""
    secret: bool = False  # experiment and arm are not told to the caller
    calibration: str = ""  # empty without one, `calibrated`, or what it does not cover
    mixture: tuple[MixturePart, ...] = ()
    votes_lost: tuple[LostVote, ...] = ()  # of classifiers that this decision needed
    note: str = ""  # where no adapter could be picked at all: why, and what to do
    continuity: Progress = ""  # whether the conversation's adapter was kept; empty where the caller chose
    previous: str = ""  # adapter name or `base` of the turns before; empty for the first
    undecided: int = 0  # turns in a row, up to this one, without a decision of their own

    @property
    def answered_by(self) -> tuple[str, str]:
        """Name and version for logs and metrics; `base` and `mixture` have no version."""
        if self.adapter is not None:
            return self.adapter.name, self.adapter.version
        return "mixture" if self.mixture else "base", ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and times of one generation. Times in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    completion_tokens: int = 0
    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    total_time: float = 0.0
    accepted_draft_tokens: int = (
        0  # of the completion's, drafts that a step computed with a token before them
    )


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """An adapter's `[labels]`: whether answers have probabilities of choices unless a request says so, and
    the `temperature` by which these are calibrated; None: they are not."""

    always: bool = False
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class LabelProbabilities:
    """Each choice of an answer with its probability, the likeliest first; their sum is 1.

    `calibrated`: scaled so that of many answers with probability p, a share of p is right.
    """

    values: tuple[tuple[str, float], ...]
    calibrated: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one sampled token, with its best alternatives.

    A token that is part of a character is U+FFFD as text: `part` has its bytes, else none. `top_parts` has
    the same of each alternative, or is empty where all are whole.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()
    part: bytes = b""
    top_parts: tuple[bytes, ...] = ()
