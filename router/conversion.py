"""Messages and plain values, by the names of their fields, for servers and clients.

A dataclass and its message have the same fields; `NAMES` has those that differ, and `FORMS` those whose value
has another form. A new field of a value needs a line in the dataclass and one in the proto.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from router.errors import Findings
from router.names import BASE, VERSION_FORM, split_adapter
from router.types import (
    AdapterEventKind,
    AdapterRef,
    AdapterState,
    FinishReason,
    Reason,
    TokenLogprob,
    VoteError,
)
from router.v1 import inference_pb2 as pb

T = TypeVar("T")
MOST_ENTRIES = 256  # of any list in a request, whose own rules allow fewer


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    made = Timestamp()
    made.FromNanoseconds(round(unix_seconds * 1e9))
    return made


def unix_seconds(value: Timestamp) -> float:
    """A proto timestamp as unix seconds."""
    try:
        return float(value.ToNanoseconds() / 1e9)
    except ValueError:
        raise ValueError("must be a time between the years 1 and 9999") from None


def duration(seconds: float) -> Duration:
    """A proto duration."""
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def seconds_of(value: Duration) -> float:
    """The double next to a proto duration, in seconds."""
    return float((value.seconds * 10**9 + value.nanos) / 10**9)


def struct(values: Mapping[str, Any]) -> Struct:
    """A proto struct."""
    made = Struct()
    made.update(values)
    return made


def route_message(route: str) -> str:
    """The route as clients see it; a resource name stays what it is."""
    return route if route in ("", BASE) or route.startswith("adapters/") else f"adapters/{route}"


def route_of(route: str) -> str:
    """The adapter's name, `base`, or nothing. Raises ValueError."""
    if route in ("", BASE):
        return route
    name, version = split_adapter(route) or ("", "")
    if not name or version or name == BASE:
        raise ValueError("must be adapters/NAME, or base; a holdout has none")
    return name


def version_of(resource: str) -> AdapterRef:
    """The version of a resource name. Raises ValueError."""
    name, version = split_adapter(resource) or ("", "")
    if not version:
        raise ValueError(f"must be {VERSION_FORM}, so that it stays the same while the experiment runs")
    return AdapterRef(name, version)


def logprob_message(entry: TokenLogprob) -> pb.TokenLogprob:
    """One token."""
    parts = entry.top_parts or (b"",) * len(entry.top)
    return pb.TokenLogprob(
        token=entry.token,
        token_id=entry.token_id,
        logprob=entry.logprob,
        top=[
            pb.TokenLogprob.Alternative(token=token, token_id=token_id, logprob=logprob, bytes=part)
            for (token, token_id, logprob), part in zip(entry.top, parts, strict=True)
        ],
        bytes=entry.part,
    )


def logprob_of(message: pb.TokenLogprob) -> TokenLogprob:
    """One token."""
    parts = tuple(one.bytes for one in message.top)
    top = tuple((one.token, one.token_id, one.logprob) for one in message.top)
    return TokenLogprob(
        message.token, message.token_id, message.logprob, top, message.bytes, parts if any(parts) else ()
    )


FORMS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "google.protobuf.Duration": (duration, seconds_of),
    "google.protobuf.Struct": (struct, MessageToDict),
    "google.protobuf.Timestamp": (timestamp, unix_seconds),
    "router.v1.TokenLogprob": (logprob_message, logprob_of),
    "route": (route_message, route_of),
    "previous": (route_message, route_of),
    "should_have_been": (route_message, route_of),
}
"""By a message's type or a field's name: how its value is written and read."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "created": ("create_time",),
    "updated": ("update_time",),
    "started": ("start_time",),
    "stopped": ("stop_time",),
    "ended": ("end_time",),
    "default": ("default_version",),
    "latency": ("route_latency",),
    "path": ("file",),
    "previous": ("previous_version",),
    "ref": ("adapter", "name"),
    "unit": ("unit_hash",),
}
"""Fields that messages call otherwise."""
LEAST: Mapping[type[Enum], Enum] = {
    AdapterEventKind: AdapterEventKind.CHANGED,
    AdapterState: AdapterState.DISCOVERED,
    FinishReason: FinishReason.ERROR,
    Reason: Reason.FALLBACK,
    VoteError: VoteError.OTHER,
}
"""What a client takes a member for that a newer server sends: the one that says the least."""


def fill(message: T, value: object) -> T:
    """Set the fields of a message that a dataclass, or a mapping of its fields, has."""
    held = value if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]
    for name, one in held.items():
        descriptor = _descriptor(message.DESCRIPTOR, name)  # type: ignore[attr-defined]
        if descriptor is None or one is None:
            continue
        target = getattr(message, descriptor.name)
        if not descriptor.is_repeated:
            _fill_one(message, descriptor, one)
        elif isinstance(one, Mapping):
            _fill_mapping(target, one)
        elif descriptor.message_type is None:
            target.extend(one)
        else:
            for entry in one:
                _fill_message(target.add(), entry)
    return message


def _fill_one(message: Any, descriptor: Any, value: Any) -> None:
    if descriptor.message_type:
        target = getattr(message, descriptor.name)
        target.SetInParent()
        _fill_message(target, value)
    elif descriptor.enum_type:
        setattr(message, descriptor.name, _prefix(descriptor) + str(value).upper())
    elif isinstance(value, AdapterRef):
        setattr(message, descriptor.name, value.resource)
    else:
        form = FORMS.get(descriptor.name)
        setattr(message, descriptor.name, form[0](value) if form else value)


def _fill_message(target: Any, value: Any) -> None:
    if form := FORMS.get(target.DESCRIPTOR.full_name):
        target.CopyFrom(form[0](value))
    else:
        fill(target, value)


def _fill_mapping(target: Any, values: Mapping[str, Any]) -> None:
    """A map of the proto, or in order: entries with `key` and `value`."""
    if hasattr(target, "update"):
        target.update(values)
        return
    for key, value in values.items():
        fill(target.add(key=key).value, value)


def read(kind: type[T], message: Any, found: Findings | None = None, within: str = "", **others: Any) -> T:
    """A dataclass from its message; `others` are fields in another form.

    With `found`, what cannot be read is noted there by its name after `within`, and a list that no request
    has is refused with InvalidRequest. Without, it is what says the least: a newer server says more.
    """
    return kind(**_values(kind, message, found, within, others))


def edited(spec: T, message: Any, names: tuple[str, ...], found: Findings, within: str) -> dict[str, Any]:
    """The fields of `names` as a message has them; one that is not set has its default."""
    left = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in names}  # type: ignore[arg-type]
    values = _values(type(spec), message, found, within, left)
    defaults = {f.name: f.default for f in fields(spec) if f.default is not MISSING}  # type: ignore[arg-type]
    return {name: values[name] if name in values else defaults[name] for name in names}


def _values(
    kind: type, message: Any, found: Findings | None, within: str, others: Mapping[str, Any]
) -> dict[str, Any]:
    known, made = {descriptor.name for descriptor, _ in message.ListFields()}, dict(others)
    for field, hint in _fields(kind):
        descriptor = _descriptor(message.DESCRIPTOR, field.name)
        if field.name in made or descriptor is None:
            continue
        if descriptor.name not in known and (_has_default(field) or NoneType in get_args(hint)):
            made.update({} if _has_default(field) else {field.name: None})
            continue
        place = f"{within}{descriptor.name}"
        try:
            made[field.name] = _value(hint, message, descriptor, found, place)
        except ValueError as error:
            if found is not None:
                found.add(place, str(error))
            if not _has_default(field):
                made[field.name] = _stand_in(hint)
    return made


def _value(hint: Any, message: Any, descriptor: Any, found: Findings | None, place: str) -> Any:
    value, (inner, *more) = getattr(message, descriptor.name), _inner(hint)
    if not descriptor.is_repeated:
        return _one(inner, descriptor, value, found, place)
    if found is not None and len(value) > MOST_ENTRIES:
        found.add(place, f"must have at most {MOST_ENTRIES} entries, got {len(value)}")
        found.check()
    if isinstance(value, Mapping):
        return dict(value)
    if get_origin(hint) is Mapping:
        return {one.key: read(more[0], one.value, found, f"{place}.") for one in value}
    if more and more != [...] and len(value) != 1 + len(more):
        raise ValueError(f"must have {1 + len(more)} entries, got {len(value)}")
    return tuple(_one(inner, descriptor, one, found, f"{place}[{i}]") for i, one in enumerate(value))


def _one(kind: Any, descriptor: Any, value: Any, found: Findings | None, place: str) -> Any:
    if message := descriptor.message_type:
        form = FORMS.get(message.full_name)
        return form[1](value) if form else read(kind, value, found, f"{place}.")
    if kind is AdapterRef:
        return version_of(value)
    if descriptor.enum_type or (isinstance(kind, type) and issubclass(kind, Enum)):
        return _member(kind, descriptor, value, found is None)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"must be one of {', '.join(get_args(kind))}")
    form = FORMS.get(descriptor.name)
    return form[1](value) if form else value


def _member(kind: Any, descriptor: Any, value: Any, lenient: bool) -> Any:
    """The member of a number or a text. Raises ValueError for one that is not known; a `lenient` reader takes
    the member that stands for those, or the text."""
    prefix = ""
    if descriptor.enum_type:
        prefix, named = _prefix(descriptor), descriptor.enum_type.values_by_number.get(value)
        value = named.name.removeprefix(prefix).lower() if named else ""
    if kind is str:
        return value
    if (member := next((one for one in kind if one == value), None)) is not None:
        return member
    if lenient and (kind in LEAST or not descriptor.enum_type):
        return LEAST.get(kind, value)
    *others, last = (f"{prefix}{member.name}" for member in kind)
    raise ValueError(f"must be {', '.join(others)} or {last}")


def _prefix(descriptor: Any) -> str:
    return str(descriptor.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED"))


@cache
def _descriptor(message: Any, name: str) -> Any:
    """The field of a message's descriptor for a value's field; None where there is none."""
    known = message.fields_by_name
    return next((known[one] for one in (*NAMES.get(name, ()), name) if one in known), None)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _stand_in(hint: Any) -> Any:
    """For what cannot be read and has no default, until it is refused."""
    kind, *_ = _inner(hint)
    if kind is str:
        return BASE
    if issubclass(kind, Enum):
        return next(iter(kind))
    raise ValueError(f"cannot be read as {kind.__name__}")


@cache
def _fields(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    """Fields with their types, without None."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in fields(kind))


@cache
def _inner(hint: Any) -> tuple[Any, ...]:
    """What is in a tuple or mapping, or the type itself; without None, and without an empty text beside a
    type."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(
            kind for kind in get_args(hint) if kind is not NoneType and get_origin(kind) is not Literal
        )
    return (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
