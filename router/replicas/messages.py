"""What goes between an edge and a replica: values of the engine as messages of `router.v1.engine`, and back.

Clocks of two machines have nothing to do with each other, so times travel as durations: a deadline as the
seconds that are left, the last progress as the seconds since.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
    SiteDelta,
    TensorData,
)
from router.errors import ConfigError, FieldViolation, InvalidRequest, PromptTooLong, RouterError, Unavailable
from router.types import Constraint, FinishReason, SamplingParams, TokenLogprob, Usage
from router.v1 import engine_pb2 as pb

PROTOCOL = 1  # raised where an edge must know that a replica can do something new
OLDEST = 1  # that this release works with on the other side: PROTOCOL of the release before, or older
PIECE = 1 << 20  # bytes of weights in a message
MOST_MESSAGE = 64 << 20  # bytes
MOST_WEIGHTS = 16 << 30  # bytes of one adapter
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


class Answer(Enum):
    """What a command gets that has no value."""

    DONE = "done"
    MISSING = "missing"  # the weights of an adapter have to be put first


Value: TypeAlias = Delta | Finished | RouterError | NDArray[np.float32] | int | Answer


@dataclass(frozen=True, slots=True)
class Hello:
    """What a replica is, when its base is loaded. `instance` is unlike that of any other process."""

    info: BaseInfo
    instance: str = ""
    version: str = __version__
    protocol: int = PROTOCOL
    oldest: int = OLDEST  # protocol of an edge that it works with


def hello_message(hello: Hello) -> pb.HelloResponse:
    """The message of `hello`."""
    info = hello.info
    values = {f.name: getattr(info, f.name) for f in fields(BaseInfo) if f.name not in ("sites", "abilities")}
    sites = [pb.EngineBase.Site(path=p, out_features=o, in_features=i) for p, (o, i) in info.sites.items()]
    base = pb.EngineBase(**values, sites=sites, abilities=sorted(info.abilities))
    return pb.HelloResponse(
        protocol=hello.protocol,
        version=hello.version,
        base=base,
        instance=hello.instance,
        oldest=hello.oldest,
    )


def hello_of(message: pb.HelloResponse) -> Hello:
    """The value of a message; abilities that this release does not know are left out."""
    base = message.base
    names = [f.name for f in fields(BaseInfo) if f.name not in ("sites", "abilities")]
    info = BaseInfo(
        **{name: getattr(base, name) for name in names},
        sites={site.path: (site.out_features, site.in_features) for site in base.sites},
        abilities=frozenset(ability for ability in Ability if ability in base.abilities),
    )
    return Hello(info, message.instance, message.version, message.protocol, message.oldest)


def check_protocol(name: str, hello: Hello) -> None:
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


def differences(fleet: Hello, other: Hello) -> Mapping[str, tuple[object, object]]:
    """What a replica must have in common with the others and has not, by name.

    Version, device and kernels may differ. One of another version may have more abilities, which nobody uses.
    """
    pairs = {name: (getattr(fleet.info, name), getattr(other.info, name)) for name in MUST_MATCH}
    if fleet.version != other.version and fleet.info.abilities <= other.info.abilities:
        del pairs["abilities"]
    return {name: (mine, theirs) for name, (mine, theirs) in pairs.items() if mine != theirs}


def check_alike(hellos: Mapping[str, Hello]) -> Hello:
    """What all replicas are; those of several versions, which is then "", with the abilities that all have.

    Raises ConfigError naming who differs from the first, and in what.
    """
    fleet, *_ = hellos.values()
    if len({hello.version for hello in hellos.values()}) > 1:
        abilities = frozenset.intersection(*(hello.info.abilities for hello in hellos.values()))
        fleet = replace(fleet, version="", info=replace(fleet.info, abilities=abilities))
    for name, other in hellos.items():
        if found := differences(fleet, other):
            raise ConfigError(f"replica {name} cannot be one of this fleet: {described(found)}")
    return fleet


def described(found: Mapping[str, tuple[object, object]]) -> str:
    """What a replica has not in common with the others. Of sites only that they differ: they are many."""
    parts = [
        f"its {name} is {theirs!r}, that of the others {mine!r}"
        if name != "sites"
        else "its layers for adapters are not those of the others"
        for name, (mine, theirs) in found.items()
    ]
    return "; ".join(parts)


# -- commands


_SAMPLING = tuple(f.name for f in fields(SamplingParams) if f.name not in ("seed", "stop", "constraint"))
_JOB = ("request_id", "tokens", "priority", "background", "tenant", "share", "own_constraint", "shared")


def submit(key: int, job: Job) -> pb.EngineCommand:
    """Answer a job. Raises InvalidRequest for text that is no Unicode."""
    params = job.params
    try:
        sampling = pb.EngineSampling(
            **{name: getattr(params, name) for name in _SAMPLING},
            seed=params.seed,
            stop=params.stop,
            constraint=None if params.constraint is None else _constraint(params.constraint),
        )
        message = pb.EngineCommand.Submit(
            **{name: getattr(job, name) for name in _JOB},
            sampling=sampling,
            adapter=job.adapter or "",
            seconds_left=_left(job.deadline),
        )
    except UnicodeEncodeError:
        raise _no_unicode("sampling") from None
    return pb.EngineCommand(key=key, submit=message)


def job_of(message: pb.EngineCommand.Submit) -> Job:
    """The job, whose constraint is not compiled yet."""
    sampling = message.sampling
    params = SamplingParams(
        **{name: getattr(sampling, name) for name in _SAMPLING},
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
        constraint=constraint_of(sampling.constraint) if sampling.HasField("constraint") else None,
    )
    values = {name: getattr(message, name) for name in _JOB} | {"tokens": list(message.tokens)}
    return Job(**values, params=params, adapter=message.adapter or None, deadline=_deadline(message))


def read(key: int, reading: PoolingRequest) -> pb.EngineCommand:
    """Do a reading."""
    message = pb.EngineCommand.Read(
        tokens=reading.tokens,
        context=reading.context,
        depth=reading.depth,
        ends=reading.ends,
        seconds_left=_left(reading.deadline),
        background=reading.background,
        scope=reading.scope,
    )
    return pb.EngineCommand(key=key, read=message)


def reading_of(message: pb.EngineCommand.Read) -> PoolingRequest:
    """The reading."""
    depth = message.depth if message.HasField("depth") else None
    tokens, context = list(message.tokens), list(message.context)
    rest = (message.ends, _deadline(message), message.background, message.scope)
    return PoolingRequest(tokens, context, depth, *rest)


def compile_(key: int, constraint: Constraint, tenant: str) -> pb.EngineCommand:
    """Compile a constraint. Raises InvalidRequest for text that is no Unicode."""
    try:
        message = pb.EngineCommand.Compile(constraint=_constraint(constraint), tenant=tenant)
    except UnicodeEncodeError:
        raise _no_unicode("constraint") from None
    return pb.EngineCommand(key=key, compile=message)


def load(key: int, digest: str) -> pb.EngineCommand:
    """Hold an adapter."""
    return pb.EngineCommand(key=key, load=pb.EngineCommand.Load(digest=digest))


def unload(key: int, digest: str) -> pb.EngineCommand:
    """Release an adapter."""
    return pb.EngineCommand(key=key, unload=pb.EngineCommand.Unload(digest=digest))


def cancel(key: int) -> pb.EngineCommand:
    """Nobody waits for that key."""
    return pb.EngineCommand(key=key, cancel=pb.EngineCommand.Cancel())


def drain(key: int) -> pb.EngineCommand:
    """End when nothing is left."""
    return pb.EngineCommand(key=key, drain=pb.EngineCommand.Drain())


def constraint_of(message: pb.EngineConstraint) -> Constraint:
    """The constraint."""
    return Constraint(message.kind, message.text, tuple(message.choices))  # type: ignore[arg-type]


def _constraint(constraint: Constraint) -> pb.EngineConstraint:
    return pb.EngineConstraint(kind=constraint.kind, text=constraint.text, choices=constraint.choices)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _deadline(message: pb.EngineCommand.Submit | pb.EngineCommand.Read) -> float | None:
    return message.seconds_left + time.monotonic() if message.HasField("seconds_left") else None


def _no_unicode(field: str) -> InvalidRequest:
    return InvalidRequest([FieldViolation(field, "has text that is no Unicode: a lone surrogate")])


# -- events

_USAGE = tuple(field.name for field in fields(Usage))


def write_event(event: pb.EngineEvent, key: int, what: Value) -> None:
    """Fill an event of `key`. Raises TypeError for what is none."""
    event.key = key
    if isinstance(what, Delta):
        _write_delta(event.delta, what)
    elif isinstance(what, Finished):
        usage, message = what.usage, event.finished
        message.reason, message.stop = what.reason.value, what.stop
        for name in _USAGE:
            setattr(message, name, getattr(usage, name))
    elif isinstance(what, RouterError):
        _write_error(event.error, what)
    elif isinstance(what, np.ndarray):
        event.numbers = what.astype("<f4").tobytes()
    elif isinstance(what, int):
        event.size = what
    elif what is Answer.DONE:
        event.done.SetInParent()
    elif what is Answer.MISSING:
        event.missing.SetInParent()
    else:
        raise TypeError(f"{type(what).__name__} is nothing that a replica answers")


def value_of(event: pb.EngineEvent) -> Value:
    """What the event says. Raises ValueError for one that this release does not know."""
    what = event.WhichOneof("what")
    if what == "delta":
        delta = event.delta
        logprobs = tuple(map(_logprob_of, delta.logprobs)) if delta.logprobs else ()
        return Delta(delta.text, delta.tokens, logprobs)
    if what == "finished":
        end = event.finished
        usage = Usage(*(getattr(end, name) for name in _USAGE))
        return Finished(FinishReason(end.reason), usage, end.stop)
    if what == "error":
        return _error_of(event.error)
    if what == "numbers":
        return np.frombuffer(event.numbers, "<f4")
    if what == "size":
        return event.size
    if what == "done":
        return Answer.DONE
    if what == "missing":
        return Answer.MISSING
    raise ValueError("a replica sent an event that this release does not know")


def _write_delta(message: pb.EngineEvent.Delta, delta: Delta) -> None:
    message.text, message.tokens = delta.text, delta.tokens
    for one in delta.logprobs:
        top = [
            pb.EngineLogprob.Alternative(token=token, token_id=token_id, logprob=logprob)
            for token, token_id, logprob in one.top
        ]
        message.logprobs.add(token=one.token, token_id=one.token_id, logprob=one.logprob, top=top)


def _logprob_of(message: pb.EngineLogprob) -> TokenLogprob:
    top = tuple((one.token, one.token_id, one.logprob) for one in message.top)
    return TokenLogprob(message.token, message.token_id, message.logprob, top)


def _write_error(message: pb.EngineError, error: RouterError) -> None:
    """By the nearest class of `router.errors`: an engine may have errors of its own."""
    message.kind = next(base.__name__ for base in type(error).__mro__ if KINDS.get(base.__name__) is base)
    message.code, message.message = error.code, error.message
    message.metadata.update(error.metadata)
    if isinstance(error, Unavailable):
        message.retry_after = error.retry_after
    if isinstance(error, InvalidRequest):
        for violation in error.violations:
            message.violations.add(field=violation.field, description=violation.description)
    if isinstance(error, PromptTooLong):
        message.got, message.at_least = error.got, error.at_least


def _error_of(message: pb.EngineError) -> RouterError:
    """As it was raised there; constructors want other things than the message holds."""
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


_COPIED = tuple(
    field.name
    for field in fields(EngineStatus)
    if field.name not in ("last_progress", "device_adapters", "host_adapters", "flaws")
)


def state_message(status: EngineStatus, draining: bool = False) -> pb.EngineState:
    """A status, with the time of its last progress as a duration."""
    return pb.EngineState(
        **{name: getattr(status, name) for name in _COPIED},
        idle_seconds=time.monotonic() - status.last_progress,
        device_adapters=status.device_adapters,
        host_adapters=status.host_adapters,
        flaws=status.flaws,
        draining=draining,
    )


def status_of(state: pb.EngineState) -> EngineStatus:
    """The status, by the clock of this process."""
    return EngineStatus(
        **{name: getattr(state, name) for name in _COPIED},
        last_progress=time.monotonic() - state.idle_seconds,
        device_adapters=tuple(state.device_adapters),
        host_adapters=tuple(state.host_adapters),
        flaws=tuple(state.flaws),
    )


# -- weights


def weights(artifact: AdapterArtifact) -> Iterator[pb.PutWeightsRequest]:
    """A header, then the tensors' bytes in pieces."""
    kind = pb.PutWeightsRequest
    header = kind.Header(
        name=artifact.name,
        version=artifact.version,
        digest=artifact.digest,
        sites=[
            kind.SiteDelta(site=name, a=_tensor(site.a), b=_tensor(site.b), scaling=site.scaling)
            for name, site in artifact.sites.items()
        ],
        parts=[kind.Part(digest=digest, weight=weight) for digest, weight in artifact.parts],
        invocation_tokens=artifact.invocation_tokens,
    )
    yield kind(header=header)
    for site in artifact.sites.values():
        for tensor in (site.a, site.b):
            data = tensor.data.cast("B")
            for at in range(0, len(data), PIECE):
                yield kind(piece=bytes(data[at : at + PIECE]))


class Upload:
    """An adapter as its pieces come."""

    def __init__(self, header: pb.PutWeightsRequest.Header) -> None:
        """Raises InvalidRequest for one that says more than an adapter has."""
        self._header = header
        self.size = sum(site.a.size + site.b.size for site in header.sites)
        if self.size > MOST_WEIGHTS:
            raise InvalidRequest([FieldViolation("header", f"has more than {MOST_WEIGHTS} bytes of weights")])
        self._data = bytearray()

    def add(self, piece: bytes) -> None:
        """The next bytes. Raises InvalidRequest where more come than the header said."""
        self._data += piece
        if len(self._data) > self.size:
            raise InvalidRequest([FieldViolation("piece", "has more bytes than the header says")])

    def artifact(self) -> AdapterArtifact:
        """The adapter. Raises InvalidRequest where some of it did not come."""
        if len(self._data) != self.size:
            found = f"{len(self._data)} of {self.size} bytes of the weights came"
            raise InvalidRequest([FieldViolation("piece", found)])
        header, rest = self._header, memoryview(self._data)
        self._data = bytearray()
        sites = {}
        for site in header.sites:
            both = rest[: site.a.size], rest[site.a.size : site.a.size + site.b.size]
            rest = rest[site.a.size + site.b.size :]
            a, b = (
                TensorData(tensor.dtype, tuple(tensor.shape), data)
                for tensor, data in zip((site.a, site.b), both, strict=True)
            )
            sites[site.site] = SiteDelta(a, b, site.scaling)
        parts = tuple((part.digest, part.weight) for part in header.parts)
        invocation = tuple(header.invocation_tokens)
        return AdapterArtifact(header.name, header.version, header.digest, sites, parts, invocation)


def _tensor(tensor: TensorData) -> Any:
    size = tensor.data.nbytes
    return pb.PutWeightsRequest.Tensor(dtype=tensor.dtype, shape=tensor.shape, size=size)
