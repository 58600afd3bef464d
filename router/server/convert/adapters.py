"""Adapters and their lifecycle events: `types` to proto."""

from __future__ import annotations

from urllib.parse import unquote

from google.protobuf.timestamp_pb2 import Timestamp

from router.server.told import clean
from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterState, Override
from router.v1 import adapters_pb2 as pb

STATES = {
    AdapterState.DISCOVERED: pb.Adapter.STATE_DISCOVERED,
    AdapterState.LOADING: pb.Adapter.STATE_LOADING,
    AdapterState.READY: pb.Adapter.STATE_READY,
    AdapterState.OFFLOADED: pb.Adapter.STATE_OFFLOADED,
    AdapterState.QUARANTINED: pb.Adapter.STATE_QUARANTINED,
}
KINDS = {
    AdapterEventKind.ADDED: pb.WatchAdaptersResponse.KIND_ADDED,
    AdapterEventKind.CHANGED: pb.WatchAdaptersResponse.KIND_CHANGED,
    AdapterEventKind.REMOVED: pb.WatchAdaptersResponse.KIND_REMOVED,
}


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def adapter_message(info: AdapterInfo, etag: str) -> pb.Adapter:
    """One adapter version."""
    return pb.Adapter(
        name=info.ref.resource,
        version=info.ref.version,
        digest=info.digest,
        domain=info.domain,
        task=info.task,
        description=info.description,
        base_model=info.base_model,
        rank=info.rank,
        target_modules=info.target_modules,
        size_bytes=info.size_bytes,
        state=STATES[info.state],
        default=info.default,
        pinned=info.pinned,
        leases=info.leases,
        last_used=None if info.last_used is None else timestamp(info.last_used),
        error=clean(info.error, files=True),
        notes=[clean(note, files=True) for note in info.notes],
        etag=etag,
        routable=info.routable,
        gate=clean(info.gate, files=True),
        gate_advice=clean(info.gate_advice, files=True),
        override=None if info.override is None else _override(info.override),
    )


def _override(override: Override) -> pb.Adapter.Override:
    return pb.Adapter.Override(
        by=override.by,
        time=timestamp(override.time),
        reason=override.reason,
        finding=clean(override.finding, files=True),
        weights_sha256=override.weights_sha256,
    )


def caller(peer: str) -> str:
    """Who calls, for a record: gRPC's name of the peer without its port, which says nothing later.

    >>> caller("ipv4:127.0.0.1:50123"), caller("ipv6:%5B::1%5D:50123")
    ('127.0.0.1', '::1')
    """
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def event_message(event: AdapterEvent, etag: str) -> pb.WatchAdaptersResponse:
    """One lifecycle event."""
    return pb.WatchAdaptersResponse(
        kind=KINDS[event.kind], adapter=adapter_message(event.adapter, etag), time=timestamp(event.time)
    )
