"""Experiments on the wire: model to proto and proto to model, each once, for the server and for clients.

The server names every bad field of what it reads, in `Findings`. A client reads what a server made: it drops
its findings, so that what a newer server says and an older client does not know has the default.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_BILLION = 1_000_000_000


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


def unix_seconds(value: Timestamp) -> float:
    """A proto timestamp as unix seconds."""
    return float(value.ToNanoseconds() / 1e9)


def duration(seconds: float) -> Duration:
    """A proto duration."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


def seconds_of(value: Duration) -> float:
    """The double next to a proto duration, in seconds."""
    return float((value.seconds * 10**9 + value.nanos) / 10**9)
