"""What goes between an edge and a replica: values of the engine as messages of `router.v1.engine`, and back.

Clocks of two machines have nothing to do with each other, so times travel as durations: a deadline as the
seconds that are left, the last progress as the seconds since.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import repeat

from router import __version__, errors
from router.engine.base import (
    Ability,
    AdapterArtifact,
    BaseInfo,
    Delta,
    EngineStatus,
    Finished,
    Job,
    PoolingRequest,
    digest_of_mixture,
)
from router.errors import (
    ConfigError,
    FailedPrecondition,
    FieldViolation,
    Findings,
    InvalidRequest,
    PromptTooLong,
    RouterError,
    Unavailable,
)
from router.types import (
    CONSTRAINT_KINDS,
    MAX_BIAS,
    MAX_BIASES,
    MAX_MIXTURE_PARTS,
    MAX_MIXTURE_WEIGHT,
    MAX_STOP_BYTES,
    MAX_STOPS,
    SAMPLING_RANGES,
    Constraint,
    FinishReason,
    LabelProbabilities,
    LabelSettings,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from router.v1 import engine_pb2 as pb

PROTOCOL = 3  # raised where an edge must know that a replica can do something new
OLDEST = 3  # that this release works with on the other side
MOST_REQUEST = 1 << 20  # bytes of a message to a replica
MOST_COMMAND = MOST_REQUEST - 1024  # bytes of one command, with which a message has room for its frame
MOST_REPLY = 16 << 20  # bytes of a message from a replica
MOST_NAME = 1024  # bytes of a request's id, or of a tenant's
MUST_MATCH = (  # what all replicas of an edge have in common; the rest may differ
    "digest", "architecture", "dtype", "context_length", "vocab_size", "sites", "weights", "abilities",
    "chat_template",
)  # fmt: skip
KINDS: Mapping[str, type[RouterError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RouterError)
}
BY_CODE: Mapping[str, type[RouterError]] = {
    kind.code: kind
    for kind in (
        *(errors.EngineFailed, errors.FailedPrecondition, errors.ResourceExhausted, errors.DeadlineExceeded),
        *(Unavailable, InvalidRequest),
    )
}


def hello_message(info: BaseInfo) -> pb.HelloResponse:
    """What a replica of this release is, whose base is loaded."""
    values = {f.name: getattr(info, f.name) for f in fields(BaseInfo) if f.name not in ("sites", "abilities")}
    sites = [pb.EngineBase.Site(path=p, out_features=o, in_features=i) for p, (o, i) in info.sites.items()]
    base = pb.EngineBase(**values, sites=sites, abilities=sorted(info.abilities))
    return pb.HelloResponse(protocol=PROTOCOL, version=__version__, base=base, oldest=OLDEST)


def info_of(base: pb.EngineBase) -> BaseInfo:
    """The base of a replica; abilities that this release does not know are left out."""
    names = [f.name for f in fields(BaseInfo) if f.name not in ("sites", "abilities")]
    return BaseInfo(
        **{name: getattr(base, name) for name in names},
        sites={site.path: (site.out_features, site.in_features) for site in base.sites},
        abilities=frozenset(ability for ability in Ability if ability in base.abilities),
    )


def check_protocol(name: str, hello: pb.HelloResponse) -> None:
    """Raises ConfigError for a replica of a release that this one cannot work with."""
    if hello.protocol < OLDEST:
        raise ConfigError(
            f"replica {name} (version {hello.version}) speaks protocol {hello.protocol}, and this edge "
            f"(version {__version__}) needs {OLDEST} or later: upgrade the replica, one release at a time"
        )
    if hello.oldest > PROTOCOL:
        raise ConfigError(
            f"replica {name} (version {hello.version}) needs protocol {hello.oldest} or later, and this edge "
            f"(version {__version__}) speaks {PROTOCOL}: upgrade the edge, one release at a time"
        )


def differences(fleet: pb.HelloResponse, other: pb.HelloResponse) -> str:
    """What a replica must have in common with the others and has not; "" if it can join them.

    Version, device and kernels may differ. One of another version may have more abilities, which nobody uses.
    """
    ours, theirs = info_of(fleet.base), info_of(other.base)
    found = [name for name in MUST_MATCH if getattr(ours, name) != getattr(theirs, name)]
    if "abilities" in found and fleet.version != other.version and ours.abilities <= theirs.abilities:
        found.remove("abilities")
    parts = [
        f"its {name} is {getattr(theirs, name)!r}, that of the others {getattr(ours, name)!r}"
        if name != "sites"  # which are many
        else "its layers for adapters are not those of the others"
        for name in found
    ]
    return "; ".join(parts)


def fleet_of(hellos: Mapping[str, pb.HelloResponse]) -> tuple[pb.HelloResponse, dict[str, str]]:
    """What most of these replicas are, and why each other one cannot be one of them.

    Among equals the first ones count. Those of several versions have the version "", and the abilities that
    all have.
    """
    kinds = {name: _kind(hello) for name, hello in hellos.items()}
    most, _ = Counter(kinds.values()).most_common(1)[0]
    alike = [hello for name, hello in hellos.items() if kinds[name] == most]
    fleet = pb.HelloResponse()
    fleet.CopyFrom(alike[0])
    if len({hello.version for hello in alike}) > 1:
        common = set.intersection(*(set(hello.base.abilities) for hello in alike))
        fleet.version, fleet.base.abilities[:] = "", sorted(common)
    found = {name: differences(fleet, hello) for name, hello in hellos.items()}
    return fleet, {name: problem for name, problem in found.items() if problem}


def _kind(hello: pb.HelloResponse) -> tuple[object, ...]:
    """What decides whether two replicas can work together, but for abilities, which may differ by version."""
    info = info_of(hello.base)
    values = {name: getattr(info, name) for name in MUST_MATCH if name != "abilities"}
    return tuple((values | {"sites": tuple(sorted(info.sites.items()))}).values())


# -- commands


_DIGEST = re.compile("[0-9a-f]{64}")
_KINDS = tuple(kind for kind in CONSTRAINT_KINDS if kind != "from_prompt")
SEPARATE = ("seed", "stop", "constraint", "logit_bias")  # fields that are not written as they stand
_SAMPLING = tuple(f.name for f in fields(SamplingParams) if f.name not in SEPARATE)
_JOB = ("request_id", "tokens", "priority", "background", "tenant", "share", "own_constraint", "shared")


def submit(job: Job, adapter: pb.EngineCommand.Load | None = None) -> pb.EngineCommand:
    """Answer a job, with `adapter` where it has one.

    Raises InvalidRequest for text that is no Unicode, and for a job that is too large.
    """
    params = job.params
    try:
        sampling = pb.EngineSampling(
            **{name: getattr(params, name) for name in _SAMPLING},
            seed=params.seed,
            stop=params.stop,
            constraint=None if params.constraint is None else _constraint(params.constraint),
            logit_bias=dict(params.logit_bias),
        )
        message = pb.EngineCommand.Submit(
            **{name: getattr(job, name) for name in _JOB},
            sampling=sampling,
            adapter=adapter,
            seconds_left=_left(job.deadline),
            labels=None
            if job.labels is None
            else pb.EngineCommand.Labels(temperature=job.labels.temperature),
        )
    except UnicodeEncodeError:
        raise _no_unicode("sampling") from None
    return _sized(pb.EngineCommand(submit=message), "input")


def job_of(message: pb.EngineCommand.Submit, vocab_size: int) -> Job:
    """The job, whose constraint is not compiled yet, for a base with so many tokens in its vocabulary.

    Raises InvalidRequest naming all fields that no edge sends so. The engine checks the rest.
    """
    found = Findings()
    values = {name: getattr(message, name) for name in _JOB} | {"tokens": list(message.tokens)}
    _check_tokens("tokens", values["tokens"], vocab_size, found)
    found.text("request_id", message.request_id, MOST_NAME)
    found.text("tenant", message.tenant, MOST_NAME)
    if message.HasField("adapter") and not _DIGEST.fullmatch(message.adapter.digest):
        found.add("adapter", "must be the digest of an adapter: 64 hex digits")
    if not 0 < message.share < math.inf:  # nor NaN
        found.add("share", f"must be a number above 0, got {message.share}")
    if message.shared > len(message.tokens):
        found.add("shared", f"must be at most the number of tokens, {len(message.tokens)}")
    labels = None
    if message.HasField("labels"):
        scaled = message.labels.HasField("temperature")
        labels = LabelSettings(temperature=message.labels.temperature if scaled else None)
        if labels.temperature is not None and not 0 < labels.temperature < math.inf:
            found.add("labels.temperature", f"must be a number above 0, got {labels.temperature}")
    job = Job(
        **values,
        params=_params_of(message.sampling, found),
        adapter=message.adapter.digest if message.HasField("adapter") else None,
        deadline=_deadline(message, found),
        labels=labels,
    )
    found.check()
    return job


def _params_of(sampling: pb.EngineSampling, found: Findings) -> SamplingParams:
    params = SamplingParams(
        **{name: getattr(sampling, name) for name in _SAMPLING},
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
        constraint=constraint_of(sampling.constraint, found) if sampling.HasField("constraint") else None,
        logit_bias=tuple(sorted(sampling.logit_bias.items())),
    )
    for name, allowed in SAMPLING_RANGES.items():
        value = getattr(params, name)
        if value is not None and value not in allowed:
            found.add(f"sampling.{name}", f"must be in {allowed}, got {value:g}")
    if len(params.stop) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_BYTES for stop in params.stop):
        found.add("sampling.stop", f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} characters")
    biases = [bias for _, bias in params.logit_bias]
    if len(biases) > MAX_BIASES or not all(abs(bias) <= MAX_BIAS for bias in biases):
        found.add("sampling.logit_bias", f"must be at most {MAX_BIASES} numbers up to {MAX_BIAS:g}")
    return params


_READING = ("tokens", "context", "depth", "ends", "background")


def read(reading: PoolingRequest) -> pb.EngineCommand:
    """Do a reading. Raises InvalidRequest for one of candidates, which engines make for themselves."""
    if reading.candidates:
        raise InvalidRequest([FieldViolation("candidates", "are read by an engine for itself alone")])
    values = {name: getattr(reading, name) for name in _READING}
    message = pb.EngineCommand.Read(**values, seconds_left=_left(reading.deadline))
    return _sized(pb.EngineCommand(read=message), "input")


def reading_of(message: pb.EngineCommand.Read, vocab_size: int) -> PoolingRequest:
    """The reading, for a base with so many tokens in its vocabulary. Raises InvalidRequest."""
    found = Findings()
    values = {name: getattr(message, name) for name in _READING}
    for name in ("tokens", "context"):
        values[name] = list(getattr(message, name))
        _check_tokens(name, values[name], vocab_size, found)
    reading = PoolingRequest(**values, deadline=_deadline(message, found))
    found.check()
    return reading


def compile_(constraint: Constraint, tenant: str) -> pb.EngineCommand:
    """Compile a constraint. Raises InvalidRequest as `submit`."""
    try:
        message = pb.EngineCommand.Compile(constraint=_constraint(constraint), tenant=tenant)
    except UnicodeEncodeError:
        raise _no_unicode("constraint") from None
    return _sized(pb.EngineCommand(compile=message), "constraint")


def constraint_of(message: pb.EngineConstraint, found: Findings) -> Constraint:
    """The constraint; what is wrong inside is found when the engine compiles it."""
    choices = tuple(message.choices)
    if message.kind not in _KINDS:
        found.add("constraint.kind", f"must be one of {', '.join(_KINDS)}")
    return Constraint(message.kind, message.text, choices)  # type: ignore[arg-type]


def load(artifact: AdapterArtifact, folders: Mapping[str, str] | None = None) -> pb.EngineCommand.Load:
    """How a replica gets an adapter; `folders` are those of a mixture's parts, by digest.

    Raises FailedPrecondition where an adapter has no folder, or a part is not loaded.
    """
    if artifact.folder is None and not artifact.parts:
        raise FailedPrecondition(f"adapter {artifact.name!r} has no folder where a replica could read it")
    found = folders or {}
    if any(digest not in found for digest, _ in artifact.parts):
        raise FailedPrecondition("an adapter of the mixture is not loaded any more: ask again")
    message = pb.EngineCommand.Load(digest=artifact.digest, folder=str(artifact.folder or ""))
    for digest, weight in artifact.parts:
        message.parts.add(digest=digest, weight=weight, folder=found[digest])
    return message


def mixture_of(message: pb.EngineCommand.Load) -> AdapterArtifact:
    """The mixture that is to be loaded. Raises InvalidRequest where its digest is not that of its parts."""
    parts = tuple((part.digest, part.weight) for part in message.parts)
    good = len(parts) <= MAX_MIXTURE_PARTS and all(abs(weight) <= MAX_MIXTURE_WEIGHT for _, weight in parts)
    if not good or message.digest != digest_of_mixture(parts):
        raise InvalidRequest([FieldViolation("parts", "are not those of a mixture with this digest")])
    return AdapterArtifact("mixture", "", message.digest, {}, parts=parts)


def _sized(command: pb.EngineCommand, field: str) -> pb.EngineCommand:
    if (size := command.ByteSize()) > MOST_COMMAND:
        text = f"takes {size} bytes on its way to a replica, and {MOST_COMMAND} are allowed"
        raise InvalidRequest([FieldViolation(field, text)])
    return command


def _check_tokens(field: str, tokens: Sequence[int], vocab_size: int, found: Findings) -> None:
    if tokens and max(tokens) >= vocab_size:
        found.add(field, f"must be below {vocab_size}, the size of the vocabulary, got {max(tokens)}")


def _constraint(constraint: Constraint) -> pb.EngineConstraint:
    return pb.EngineConstraint(**{f.name: getattr(constraint, f.name) for f in fields(Constraint)})


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _deadline(message: pb.EngineCommand.Submit | pb.EngineCommand.Read, found: Findings) -> float | None:
    if not message.HasField("seconds_left"):
        return None
    if not math.isfinite(message.seconds_left):
        found.add("seconds_left", "must be a finite number")
    return message.seconds_left + time.monotonic()


def _no_unicode(field: str) -> InvalidRequest:
    return InvalidRequest([FieldViolation(field, "has text that is no Unicode: a lone surrogate")])


# -- events of a generation


_USAGE = tuple(field.name for field in fields(Usage))


def write_event(event: pb.EngineEvent, what: Delta | Finished) -> None:
    """Fill an event with what an engine generated."""
    if isinstance(what, Delta):
        message = event.delta
        message.text, message.tokens = what.text, what.tokens
        for one in what.logprobs:
            top = [
                pb.EngineLogprob.Alternative(token=token, token_id=token_id, logprob=logprob, bytes=part)
                for (token, token_id, logprob), part in zip(
                    one.top, one.top_parts or repeat(b""), strict=False
                )
            ]
            message.logprobs.add(
                token=one.token, token_id=one.token_id, logprob=one.logprob, top=top, bytes=one.part
            )
    else:
        usage = {name: getattr(what.usage, name) for name in _USAGE}
        finished = pb.EngineEvent.Finished(reason=what.reason.value, stop=what.stop, **usage)
        if what.labels is not None:
            finished.labels_calibrated = what.labels.calibrated
            for text, probability in what.labels.values:
                finished.labels.add(text=text, probability=probability)
        event.finished.CopyFrom(finished)


def delta_of(message: pb.EngineEvent.Delta) -> Delta:
    """The piece of text."""
    logprobs = tuple(map(_logprob_of, message.logprobs)) if message.logprobs else ()
    return Delta(message.text, message.tokens, logprobs)


def finished_of(message: pb.EngineEvent.Finished) -> Finished:
    """The end of an answer."""
    usage = Usage(**{name: getattr(message, name) for name in _USAGE})
    values = tuple((one.text, one.probability) for one in message.labels)
    labels = LabelProbabilities(values, message.labels_calibrated) if values else None
    return Finished(FinishReason(message.reason), usage, message.stop, labels)


def _logprob_of(message: pb.EngineLogprob) -> TokenLogprob:
    top = tuple((one.token, one.token_id, one.logprob) for one in message.top)
    parts = tuple(one.bytes for one in message.top)
    return TokenLogprob(
        message.token, message.token_id, message.logprob, top, message.bytes, parts if any(parts) else ()
    )


def error_message(error: RouterError) -> pb.EngineError:
    """An error by the nearest class of `router.errors`: an engine may have errors of its own."""
    kind = next(base.__name__ for base in type(error).__mro__ if KINDS.get(base.__name__) is base)
    message = pb.EngineError(kind=kind, code=error.code, message=error.message, metadata=dict(error.metadata))
    if isinstance(error, Unavailable):
        message.retry_after = error.retry_after
    if isinstance(error, InvalidRequest):
        for violation in error.violations:
            message.violations.add(field=violation.field, description=violation.description)
    if isinstance(error, PromptTooLong):
        message.got, message.at_least = error.got, error.at_least
    return message


def error_of(message: pb.EngineError) -> RouterError:
    """The error as the replica raised it; constructors want other things than the message holds."""
    kind = KINDS.get(message.kind) or BY_CODE.get(message.code, errors.EngineFailed)
    error = kind.__new__(kind, message.message)
    RouterError.__init__(error, message.message, **message.metadata)
    if isinstance(error, Unavailable):
        error.retry_after = message.retry_after
    if isinstance(error, InvalidRequest):
        error.violations = tuple(FieldViolation(v.field, v.description) for v in message.violations)
    if isinstance(error, PromptTooLong):
        error.got, error.at_least = message.got, message.at_least
    return error


# -- states


_LISTS = ("device_adapters", "host_adapters", "flaws")
_COPIED = tuple(f.name for f in fields(EngineStatus) if f.name not in ("last_progress", *_LISTS))


def state_message(status: EngineStatus, draining: bool = False) -> pb.EngineState:
    """A status, with the time of its last progress as a duration."""
    values = {name: getattr(status, name) for name in (*_COPIED, *_LISTS)}
    return pb.EngineState(**values, idle_seconds=time.monotonic() - status.last_progress, draining=draining)


def status_of(state: pb.EngineState) -> EngineStatus:
    """The status, by the clock of this process."""
    values = {name: getattr(state, name) for name in _COPIED}
    values |= {name: tuple(getattr(state, name)) for name in _LISTS}
    return EngineStatus(**values, last_progress=time.monotonic() - state.idle_seconds)
