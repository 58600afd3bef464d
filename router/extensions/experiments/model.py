"""An experiment as a resource: its plan and phases, and what is logged.

Plain values; the store keeps them, the service shows them, and statistics and assignment are made from
them. Clients import this, so nothing here needs numpy. The plan is a pydantic model:
`plan_file` reads, writes and checks it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainSerializer

from router.errors import FieldViolation, InvalidRequest
from router.extensions.experiments.times import TO_FIRST, TOTAL, UNSERVED, is_meant_as_share, slow_share
from router.names import resource_of, split_adapter
from router.types import AdapterRef

ID_FORM = "1 to 63 small letters, digits and hyphens, with a letter first and no hyphen last"
WORD_FORM = "1 to 63 letters, digits, and _ . -, with a letter or digit first"
_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EXPERIMENT = re.compile(rf"experiments/({_ID})")
_NAME = re.compile(_ID)
_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62})")


def parse_experiment(resource: str, field: str = "name") -> str:
    """NAME of `experiments/NAME`; raises InvalidRequest naming `field`."""
    match = _EXPERIMENT.fullmatch(resource)
    if match is None:
        raise InvalidRequest([FieldViolation(field, f"must be experiments/NAME, NAME being {ID_FORM}")])
    return match[1]


def id_problem(name: str) -> str:
    """Why an experiment or a namespace cannot be called so; empty if it can."""
    return "" if _NAME.fullmatch(name) else f"must be {ID_FORM}"


def is_word(name: str) -> bool:
    """Whether an arm or a metric may be called so."""
    return _WORD.fullmatch(name) is not None


BASE = "base"
"""The route of requests that no adapter is for; the base model has no name of its own."""


class Kind(StrEnum):
    """How a metric comes from units' rows."""

    PROPORTION = "proportion"
    """One 0 or 1 for each unit."""
    MEAN = "mean"
    """One number for each unit."""
    RATIO = "ratio"
    """Sum over all units divided by another sum: outcomes per request, tokens per answer."""

    @property
    def rules(self) -> KindRules:
        """What holds for metrics of this kind."""
        return KIND_RULES[self]


class Mode(StrEnum):
    """How the arms are served."""

    SPLIT = "split"
    """Every enrolled unit gets one arm and is answered by it."""
    SHADOW = "shadow"
    """Control answers; the other arms answer the same request too, and nobody sees that."""
    HOLDOUT = "holdout"
    """Nothing of its own: everybody in experiments against the server's holdout, which is in none."""


class Lifecycle(StrEnum):
    """Where an experiment is in its life."""

    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"


class Aggregate(StrEnum):
    """How several outcomes of one unit become its one value."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class KindRules:
    """What holds for all metrics of a kind.

    `columns` are the sums that a unit has without a covariate: a second one is the denominator. `aggregates`
    are those that a plan may name, the usual one first. A `binary` kind has 0 or 1 for each unit, so its
    value lies within 0 and 1, and its spread follows from it. `uncappable` says why a metric has no cap;
    it is empty if it may have one.
    """

    words: str
    aggregates: tuple[Aggregate, ...]
    columns: int = 1
    binary: bool = False
    uncappable: str = ""

    @property
    def usual(self) -> Aggregate:
        """What several outcomes of a unit become where a plan does not say it."""
        return self.aggregates[0]

    @property
    def has_denominator(self) -> bool:
        """Whether the value is a sum over a sum."""
        return self.columns == 2


KIND_RULES: Mapping[Kind, KindRules] = {
    Kind.PROPORTION: KindRules(
        "0 or 1 for a unit",
        (Aggregate.MAX, Aggregate.LAST),
        binary=True,
        uncappable="it is 0 or 1 anyway",
    ),
    Kind.MEAN: KindRules("a number", (Aggregate.SUM, Aggregate.MEAN, Aggregate.MAX, Aggregate.LAST)),
    Kind.RATIO: KindRules(
        "a sum over a sum",
        (Aggregate.SUM,),
        columns=2,
        uncappable="cap what it is made of",
    ),
}


def listed(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


class Unanswered(StrEnum):
    """What a unit without an outcome counts as."""

    EXCLUDED = "excluded"
    ZERO = "zero"


MAX_ARMS, MAX_METRICS, MAX_SEGMENTS, MAX_SEGMENT_VALUES = 32, 32, 3, 12
LONGEST_LABEL = 64  # bytes of a label and of its values
NO_VALUE, OTHER_VALUE = "(none)", "(other)"
"""A unit without the label, and one whose value the plan does not name."""
_TIME: Mapping[str, object] = {"kind": "mean", "aggregate": "mean", "higher_is_better": False}
_SHARE: Mapping[str, object] = {"kind": "proportion", "higher_is_better": False}
BUILT_IN_METRICS: Mapping[str, Mapping[str, object]] = {
    TO_FIRST: _TIME,
    TOTAL: _TIME,
    "completion_tokens": _TIME,
    "length_stop": _SHARE,
    "error": _SHARE,
    "cancelled": _SHARE,
    UNSERVED: _TIME,
}
"""Recorded without the client, with what a metric of that name is unless a plan says otherwise. Seconds,
seconds, tokens, and 0 or 1 for each response; seconds until the end of a request that never got a first
token, which has `error` and `cancelled` besides and nothing else. See `times` for what metrics are
made of the seconds. Of what is 0 or 1 for an answer, the share of units that had it once: a proportion is
exact from the first unit on, and shows that nothing happened, too."""
BUILT_IN = tuple(BUILT_IN_METRICS)
FEEDBACK = "feedback"
"""Recorded by the server where a plan has it: 1 or 0 for each response that a user found good or not."""
SERVER_KEYS = "server:"
"""What keys of the server's own outcomes begin with."""
DENOMINATORS = ("responses", "outcomes")
"""What a ratio may be counted per, if not another outcome: answers given, values recorded."""


def known_metric(name: str) -> Mapping[str, object]:
    """What follows from a metric's name: kind, aggregate and direction of what the server records."""
    return _SHARE if is_meant_as_share(name) else BUILT_IN_METRICS.get(name, {})


def outcome_problem(metric: str) -> str:
    """Why a client cannot record an outcome under this name; empty if it can."""
    if not is_word(metric):
        return f"must be {WORD_FORM}"
    if known_metric(metric):
        return "is recorded by the server itself; choose another name"
    if metric in DENOMINATORS:
        return "is a denominator that the server counts; choose another name"
    return ""


# -- The plan: names, defaults, bounds and descriptions of its fields are said here alone. Files, JSON, the
# database and the checks of single fields come from it; a field's message has the same name in the proto.

UNITS = {"d": 86_400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
YEAR = 365 * 86_400.0
Metadata = ConfigDict(extra="forbid", revalidate_instances="always")


def seconds(value: object) -> object:
    """A number of seconds, or a time as 90s, 30min, 12h, 1d. Raises ValueError for another text."""
    match = re.fullmatch(r"(.*?)\s*(s|min|h|d)?", value.strip()) if isinstance(value, str) else None
    try:
        return float(match[1]) * UNITS[match[2] or "s"] if match else value
    except ValueError:
        raise ValueError(f"must be a time such as 90s, 30min, 12h or 1d, not {value!r}") from None


def time_text(value: float) -> str:
    """`36h`, `90s`.

    >>> time_text(129_600.0)
    '36h'
    """
    unit = next((unit for unit, length in UNITS.items() if value and value % length == 0), "s")
    return f"{value / UNITS[unit]:.17g}{unit}"


def version_of(value: object) -> object:
    """NAME@VERSION or a resource name as the version; `base` is None. Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    if value == BASE:
        return None
    name, version = split_adapter(resource_of(value)) or ("", "")
    if not version:
        raise ValueError(f"must be NAME@VERSION or base, not {value!r}")
    return AdapterRef(name, version)


def _word(name: str) -> str:
    if not is_word(name):
        raise ValueError(f"must be {WORD_FORM}")
    return name


def _namespace(name: str) -> str:
    if name and (problem := id_problem(name)):
        raise ValueError(problem)
    return name


def _label(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if (size := len(text.encode())) > LONGEST_LABEL:
        raise ValueError(f"must have at most {LONGEST_LABEL} bytes, has {size}")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must have no control characters")
    return text


def _label_value(text: str) -> str:
    if text in (NO_VALUE, OTHER_VALUE):
        raise ValueError(f"{text!r} stands for units that have none of the values: leave it out")
    return _label(text)


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")
    return values


def _with_known(values: object) -> object:
    """A metric of a file with what follows from its name; one of another kind has only its direction."""
    if not isinstance(values, Mapping):
        return values
    known = known_metric(str(values.get("name")))
    if values.get("kind", known.get("kind")) != known.get("kind"):
        known = {name: value for name, value in known.items() if name == "higher_is_better"}
    return {**known, **values}


Word = Annotated[str, AfterValidator(_word)]
Seconds = Annotated[float, BeforeValidator(seconds), PlainSerializer(time_text, return_type=str)]
Version = Annotated[
    AdapterRef | None, BeforeValidator(version_of), PlainSerializer(lambda ref: str(ref) if ref else BASE)
]


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One arm; without an adapter it is the base."""

    __pydantic_config__ = Metadata

    name: Annotated[Word, Field(description="its name")]
    weight: Annotated[float, Field(description="its share of the units; all add up to 1")]
    adapter: Annotated[Version, Field(description="left out: the base, without an adapter")] = None


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric of an experiment.

    `name` is the outcome it reads, or a built-in one (`BUILT_IN`). A ratio is the sum of its outcomes
    over the sum of `per`: another outcome's name, or `responses` (answers given, the default) or
    `outcomes` (values recorded). Where a plan does not say `aggregate` or `missing`, the server chooses
    (`plans.chosen`). `margin` belongs to guardrails, as does `improve`: an arm is promoted only
    if the metric is shown to be better than control's. A mean with a `cap` counts a unit's value as at most
    that, and as at least `least`. Outcomes count for `window` seconds after a unit's first exposure; 0 is the
    plan's window.
    """

    __pydantic_config__ = Metadata

    name: Annotated[Word, Field(description="an outcome that you record, or a built-in one")]
    kind: Annotated[Kind, Field(description="; ".join(f'"{kind}": {kind.rules.words}' for kind in Kind))]
    higher_is_better: Annotated[bool, Field(description="false: less is better")] = True
    aggregate: Annotated[
        Aggregate | None, Field(description="several outcomes of a unit: max, sum, mean, last")
    ] = None
    per: Annotated[
        Word, Field(description='of a ratio: over answers given, "outcomes", or another outcome')
    ] = DENOMINATORS[0]
    missing: Annotated[
        Unanswered | None, Field(description='units without an outcome count as 0; "excluded": left out')
    ] = None
    covariate: Annotated[
        bool, Field(description="adjust by the same outcome of the unit from before (CUPED)")
    ] = False
    margin: Annotated[float, Field(description="of a guardrail: how much worse it may be")] = 0.0
    relative: Annotated[bool, Field(description="true: the margin is a share of control's value")] = False
    cap: Annotated[float | None, Field(description="of a mean: a unit counts as at most this")] = None
    least: Annotated[float, Field(description="with a cap: and as at least this")] = 0.0
    window: Annotated[
        Seconds, Field(description="how long its outcomes count; left out: the plan's window, the longest")
    ] = 0.0
    improve: Annotated[
        bool, Field(description="of a guardrail, without a margin: must be better, such as completion_tokens")
    ] = False

    @property
    def combined(self) -> Aggregate:
        """How several outcomes of a unit become one: as the plan says, else as is usual for the kind."""
        return self.aggregate or self.kind.rules.usual

    @property
    def built_in(self) -> bool:
        """Whether the server records all that it reads, so that it is known when an answer ends."""
        per = self.per in (*DENOMINATORS, *BUILT_IN) or not self.kind.rules.has_denominator
        return (self.name in BUILT_IN or slow_share(self.name) is not None) and per


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """A label of the request by whose values the effect is reported, too.

    Values that are not named are "(other)".
    """

    __pydantic_config__ = Metadata

    label: Annotated[str, AfterValidator(_label), Field(description="at most 3 labels: each widens ranges")]
    values: Annotated[
        tuple[Annotated[str, AfterValidator(_label_value)], ...],
        AfterValidator(_distinct),
        Field(min_length=1, max_length=MAX_SEGMENT_VALUES, description='others are "(other)"'),
    ] = ()


Metric = Annotated[MetricSpec, BeforeValidator(_with_known)]


@dataclass(frozen=True, slots=True)
class Spec:
    """What an operator says, and may edit. Editing after the start opens a new phase with new salts.

    `route` is the adapter's name whose requests take part (`base`: those that the base would answer);
    empty in a holdout, which is of all. `unit`
    tells what a unit is (user, session), for people; it is read from `routing.unit`, or from the label
    `unit_label`. `window` is how many seconds after exposure outcomes count; `grace` how much later they may
    arrive, in seconds: then a unit is mature, and nothing changes it any more. `shadow_share` is the share of
    matched requests that shadow arms answer too. `secondary` metrics are reported and decide
    nothing. With `equal_arms` arms may be the same
    version, as in an A/A test.

    Nothing is checked here: `plans.plan_problems` names all that is wrong.
    """

    __pydantic_config__ = Metadata

    hypothesis: Annotated[str, Field(max_length=4096, description="what it is to show, in words")]
    route: Annotated[
        str, Field(description='the adapter whose requests take part; "base": those that no adapter is for')
    ]
    arms: Annotated[tuple[ArmSpec, ...], Field(max_length=MAX_ARMS)]
    control: Annotated[str, Field(description="the arm that the others are compared with")]
    primary: Annotated[Metric, Field(description="the metric that decides")]
    guardrails: Annotated[
        tuple[Metric, ...],
        Field(max_length=MAX_METRICS, description="must not get worse by more than the margin"),
    ] = ()
    mode: Annotated[Mode, Field(description='or "shadow", or "holdout" (no route)')] = Mode.SPLIT
    unit: Annotated[
        str,
        Field(
            max_length=64,
            description="who has the same experience throughout; requests say it in routing.unit",
        ),
    ] = "user"
    unit_label: Annotated[
        str, Field(max_length=64, description="read the unit from this label of the request instead")
    ] = ""
    enrolment: Annotated[
        float, Field(description="share of the units that takes part; may be raised while it runs")
    ] = 1.0
    namespace: Annotated[
        str,
        AfterValidator(_namespace),
        Field(description="experiments of one namespace never share a unit"),
    ] = ""
    slot: Annotated[tuple[float, float], Field(description="this one's part of it")] = (0.0, 1.0)
    margin: Annotated[
        float, Field(description="how much worse the primary metric may be; 0 asks it to be better")
    ] = 0.0
    alpha: Annotated[float, Field(description="chance of a false verdict")] = 0.05
    planned_units: Annotated[
        int, Field(description="of all arms: `experiments plan` tells how many an effect takes")
    ] = 5000
    min_units: Annotated[int, Field(description="in each arm, before anything is promoted")] = 100
    min_matured: Annotated[
        float, Field(description="share of units that had their window, before anything is promoted")
    ] = 0.8
    window: Annotated[
        Seconds,
        Field(
            ge=1, le=YEAR, description="outcomes count this long after a unit was first served: s, min, h, d"
        ),
    ] = 86_400.0
    shadow_share: Annotated[
        float, Field(gt=0, le=1, description="shadow: share of requests that shadow arms answer too")
    ] = 1.0
    secondary: Annotated[
        tuple[Metric, ...],
        Field(max_length=MAX_METRICS, description="reported too, decides nothing"),
    ] = ()
    segments: Annotated[
        tuple[SegmentSpec, ...],
        Field(max_length=MAX_SEGMENTS, description="the effect by the values of a label of the request"),
    ] = ()
    grace: Annotated[
        Seconds,
        Field(
            ge=0,
            le=YEAR,
            description="outcomes may arrive this much later, by a batch job: then a unit is mature",
        ),
    ] = 0.0
    equal_arms: Annotated[
        bool, Field(description="true: arms may be the same version, to test the pipeline (A/A)")
    ] = False

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """All of them, the primary one first."""
        return (self.primary, *self.guardrails, *self.secondary)

    @property
    def closing(self) -> float:
        """Seconds after its first exposure at which a unit is mature."""
        return self.window + self.grace

    def window_of(self, metric: MetricSpec) -> float:
        """Seconds after a unit's first exposure in which outcomes of a metric count."""
        return metric.window or self.window

    def closing_of(self, metric: MetricSpec) -> float:
        """Seconds after its first exposure at which a unit's value of a metric is final."""
        return self.window_of(metric) + self.grace


WITHIN = "@"
"""What stands in the key of an early reading, or of one with a window of its own. No outcome has it."""


def within_key(name: str, window: float) -> str:
    """The key of what is kept of an outcome within so many seconds of a unit's first exposure.

    >>> within_key("error", 600.0)
    'error@600'
    """
    return f"{name}{WITHIN}{window:.12g}"


EARLY_SECONDS = 600.0
"""Seconds of the early reading of phases that begin now: as long as an answer may take by default."""


@dataclass(frozen=True, slots=True)
class ExperimentPhase:
    """A stretch of an experiment under one spec and one set of salts.

    Within `early` seconds of a unit's first exposure its guardrails are read early (0: not at all).
    `width` is the seconds of its first stretches of time (0: by its windows).
    """

    number: int
    started: float  # unix seconds
    enrolment_salt: str
    variant_salt: str
    spec: Spec
    ended: float | None = None
    reason: str = ""  # why it was opened
    early: float = 0.0
    width: float = 0.0

    @property
    def early_guardrails(self) -> tuple[MetricSpec, ...]:
        """Built-in guardrails as they are read early: of what was recorded soon after the first exposure.

        They are for harm only. There is none where a guardrail's own window is as short.
        """
        if not self.early or self.spec.mode not in (Mode.SPLIT, Mode.HOLDOUT):
            return ()
        return tuple(
            replace(rail, window=self.early, covariate=False)
            for rail in self.spec.guardrails
            if rail.built_in and not rail.improve and self.spec.window_of(rail) > self.early
        )


@dataclass(frozen=True, slots=True)
class Experiment:
    """The resource `experiments/NAME`. `spec` is what is served now or will be after the start."""

    name: str
    spec: Spec
    state: Lifecycle = Lifecycle.DRAFT
    phases: tuple[ExperimentPhase, ...] = ()
    created: float = 0.0
    updated: float = 0.0
    stopped: float | None = None
    stop_reason: str = ""
    promoted: str = ""  # the arm
    etag: str = ""
    warnings: tuple[str, ...] = ()  # as a server shows it: what deserves a second look; not kept

    @property
    def resource(self) -> str:
        """The resource name."""
        return f"experiments/{self.name}"

    @property
    def phase(self) -> ExperimentPhase | None:
        """The running, or the last, phase."""
        return self.phases[-1] if self.phases else None


@dataclass(frozen=True, slots=True)
class Exposure:
    """A request of a unit that has this arm: the arm began to answer, or the request ended before that.
    Counted once for a unit and phase; every response is kept.

    `unit` is the hash of the unit, never the unit. `degraded`: the arm could not answer and something
    else did; the unit stays in its arm. `time`: of the first token, or of the end before it.
    """

    experiment: str
    phase: int
    unit: str
    arm: str
    time: float
    response_id: str
    adapter_digest: str = ""
    base_digest: str = ""
    router_digest: str = ""
    degraded: str = ""  # why
    segments: Mapping[str, str] = field(default_factory=dict)  # label -> value, of the plan's segments


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """One value of one metric, of a response or of a unit. Exactly one of them is set.

    The key makes it safe to send again: the same key is counted once, and answered the same. `time` is when
    it happened, `received` when it came by the server's clock (0: at once), in unix seconds.
    """

    key: str
    metric: str
    value: float
    time: float
    response_id: str = ""
    experiment: str = ""
    unit: str = ""  # the unit's hash
    received: float = 0.0


class Accepted(StrEnum):
    """What became of an outcome."""

    COUNTED = "counted"
    DUPLICATE = "duplicate"
    LATE = "late"
    """Happened after the window, or came after the window and its grace: kept, not counted."""
    UNKNOWN = "unknown"
    """No such response, or the unit was not exposed."""
    NOT_KEPT = "not-kept"
    """The same, and as many of those are kept already as may be."""


RULE = "rule"
"""The actor of what the server does by itself."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An act on an experiment: who or what did it, by which rule, with the numbers."""

    experiment: str
    time: float
    actor: str
    act: str
    reason: str
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoInterval:
    """Why there is no interval yet: a rule, words with numbers, and about how many units of both arms are
    still needed (None where more of them would not help)."""

    rule: str
    text: str
    units: int | None = None

    @property
    def words(self) -> str:
        """All of it in words."""
        if self.units is None:
            return self.text
        return f"{self.text}; that is about {self.units:,} more units of both arms"
