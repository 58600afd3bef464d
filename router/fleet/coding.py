"""Posts and batches as bytes: MessagePack, in which a value is a map of one number, that of its kind.

Nothing but these can come out of bytes, whoever made them: a pickle could run code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, NamedTuple

import msgpack
import numpy as np

from router import errors
from router.engine.base import Delta, EngineStatus, Finished, Job, Reading
from router.errors import FieldViolation, RouterError
from router.fleet.messages import (
    Batch,
    Cancel,
    Compile,
    Event,
    Load,
    Post,
    Read,
    Submit,
    Unload,
)
from router.types import Constraint, FinishReason, SamplingParams, TokenLogprob, Usage

ARRAY, ERROR, FIRST = 0, 1, 2  # numbers of kinds; others have FIRST and their place in KINDS
KINDS: tuple[type[Any], ...] = (
    Post, Submit, Read, Compile, Load, Unload, Cancel, Batch, Event,
    Job, Reading, SamplingParams, Constraint, Delta, TokenLogprob, Finished, Usage, EngineStatus,
    FieldViolation,
)  # fmt: skip
_ERRORS: Mapping[str, type[RouterError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RouterError)
}


class Kind(NamedTuple):
    """How values of one kind are written and made again."""

    code: int
    values: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]


def _finished(reason: str, *rest: Any) -> Finished:
    return Finished(FinishReason(reason), *rest)


def _values(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    names = [field.name for field in fields(kind)]
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


_MAKERS: Mapping[type[Any], Callable[..., Any]] = {Finished: _finished}
_KINDS = {
    kind: Kind(FIRST + place, _values(kind), _MAKERS.get(kind, kind)) for place, kind in enumerate(KINDS)
}
_MAKES = {kind.code: kind.make for kind in _KINDS.values()}


def encoded(what: Any) -> bytes:
    """The bytes of a post, a batch or a text. Raises TypeError for what is not to travel."""
    found: bytes = msgpack.packb(what, default=_written, unicode_errors="surrogatepass")
    return found


def decoded(data: bytes) -> Any:
    """What was encoded; sequences come as tuples. Raises ValueError for bytes that nobody encoded."""
    try:
        return msgpack.unpackb(
            data, object_hook=_read, use_list=False, unicode_errors="surrogatepass", strict_map_key=False
        )
    except (msgpack.UnpackException, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a message: {error}") from error


def _written(what: Any) -> Any:
    if (kind := _KINDS.get(type(what))) is not None:
        return {kind.code: kind.values(what)}
    if isinstance(what, RouterError):
        return {ERROR: (_known(type(what)), what.args, what.__dict__)}
    if isinstance(what, np.ndarray):
        return {ARRAY: (what.shape, what.astype("<f4").tobytes())}
    if isinstance(what, np.generic):
        return what.item()
    raise TypeError(f"{type(what).__name__} is nothing that goes between an edge and a replica")


def _read(found: dict[Any, Any]) -> Any:
    """A table as it is, which has texts for keys, or the value that a map of one number stands for."""
    code = next(iter(found), "")
    if not isinstance(code, int):
        return found
    values = found[code]
    if code == ARRAY:
        shape, numbers = values
        return np.frombuffer(numbers, "<f4").reshape(shape)
    if code == ERROR:
        name, said, attributes = values
        error = _ERRORS[name].__new__(
            _ERRORS[name], *said
        )  # constructors want other things than `args` holds
        error.__dict__.update(attributes)
        return error
    return _MAKES[code](*values)


def _known(kind: type[RouterError]) -> str:
    """Its name, or that of what it is a kind of: an engine of somebody else may have errors of its own."""
    return next(base.__name__ for base in kind.__mro__ if _ERRORS.get(base.__name__) is base)
