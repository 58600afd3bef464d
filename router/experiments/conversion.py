"""Values as messages and back, by the names of their fields.

A field of a dataclass is the field of the same name in its message: a number, a text, an enum whose values
are called alike, another dataclass, a tuple of these, or a mapping. A field that only one of both has is left
out. What is not set in a message has the dataclass's default; a number with a default other than 0 is
`optional` in the proto. So a new field is one line in the dataclass and one in the proto.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from router.errors import Findings
from router.experiments.model import BASE, listed
from router.names import VERSION_FORM, split_adapter
from router.types import AdapterRef

T = TypeVar("T")
MOST_ENTRIES = 256  # of any list in a request, whose own rules allow fewer
_BILLION = 1_000_000_000


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


def unix_seconds(value: Timestamp) -> float:
    """A proto timestamp as unix seconds."""
    try:
        return float(value.ToNanoseconds() / 1e9)
    except ValueError:
        raise ValueError("must be a time between the years 1 and 9999") from None


def duration(seconds: float) -> Duration:
    """A proto duration."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


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


FORMS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "google.protobuf.Duration": (duration, seconds_of),
    "google.protobuf.Struct": (struct, MessageToDict),
    "google.protobuf.Timestamp": (timestamp, unix_seconds),
    "adapter": (lambda ref: ref.resource, version_of),
    "route": (route_message, route_of),
}
"""By a message's type or a field's name: how its value is written and read."""
NAMES: Mapping[str, str] = {
    "created": "create_time",
    "updated": "update_time",
    "started": "start_time",
    "stopped": "stop_time",
    "ended": "end_time",
    "withdrawn": "withdraw_time",
}
"""Times, as the API calls them."""


def fill(message: T, value: object) -> T:
    """Set the fields of a message that a dataclass, or a mapping of its fields, has."""
    held = value if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]
    for name, one in held.items():
        descriptor = _descriptor(message, name)
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
                fill(target.add(), entry)
    return message


def _fill_one(message: Any, descriptor: Any, value: Any) -> None:
    kind = descriptor.message_type
    form = FORMS.get(kind.full_name if kind else descriptor.name)
    if kind and form:
        getattr(message, descriptor.name).CopyFrom(form[0](value))
    elif kind:
        target = getattr(message, descriptor.name)
        target.SetInParent()
        fill(target, value)
    elif descriptor.enum_type:
        setattr(message, descriptor.name, _prefix(descriptor) + str(value).upper())
    else:
        setattr(message, descriptor.name, form[0](value) if form else value)


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
    has is refused with InvalidRequest. Without, it has its default: a newer server says more.
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
        descriptor = _descriptor(message, field.name)
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
    message = descriptor.message_type
    if form := FORMS.get(message.full_name if message else descriptor.name):
        return form[1](value)
    if message:
        return read(kind, value, found, f"{place}.")
    return _member(kind, descriptor, value) if descriptor.enum_type else value


def _member(kind: type[Enum], descriptor: Any, number: int) -> Enum:
    """The enum's value of a number. Raises ValueError for one that is not known."""
    named, prefix = descriptor.enum_type.values_by_number.get(number), _prefix(descriptor)
    name = named.name.removeprefix(prefix) if named else ""
    if name not in kind.__members__:
        raise ValueError(f"must be {listed(f'{prefix}{member.name}' for member in kind)}")
    return kind[name]


def _prefix(descriptor: Any) -> str:
    return str(descriptor.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED"))


def _descriptor(message: Any, name: str) -> Any:
    known = message.DESCRIPTOR.fields_by_name
    return known.get(NAMES.get(name, name)) or known.get(name)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _stand_in(hint: Any) -> Any:
    """For what cannot be read and has no default, until it is refused."""
    kind, *_ = _inner(hint)
    return next(iter(kind)) if issubclass(kind, Enum) else BASE


@cache
def _fields(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    """Fields with their types, without None."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in fields(kind))


@cache
def _inner(hint: Any) -> tuple[Any, ...]:
    """What is in a tuple or mapping, or the type itself; without None."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return get_args(hint) or (hint,)
