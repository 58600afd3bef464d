"""The policy table: for every method and route who may call it, and under which bounds.

A gRPC service or HTTP routes are registered together with their rows. What has no row is not served: the
server does not start. A row's name is `/SERVICE/METHOD` over gRPC and `VERB /PATH` over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from router.access.clients import Role
from router.errors import ConfigError

SMALL = 64 << 10  # bytes of a body: too few to be bounded together
LARGE = 1 << 20  # bytes of the largest body that a row may allow


@dataclass(frozen=True, slots=True)
class Policy:
    """One row.

    `role`: what a client needs to call it. `gated`: refused while the server loads or drains. `admitted`:
    takes one of the places that admission counts. `part`: of all places, calls of this row hold at most one
    in so many. `generates`: answers with generated text, which admission estimates and metrics count as a
    request. `watch`: has no end of its own and is ended by a drain. `carries`: a watch each of whose messages
    is a call of its own, which quotas count instead, and which ends itself in a drain. `counted`: metrics
    time its calls. `logged`: writes a log line and a trace. `views`: needs the role admin and changes
    nothing, so the audit keeps no line of it. `max_body`: bytes of one message, at most LARGE; 0 for the
    setting `max_body_bytes`.
    """

    role: Role
    gated: bool = False
    admitted: bool = False
    part: int = 1
    generates: bool = False
    watch: bool = False
    carries: bool = False
    counted: bool = True
    logged: bool = False
    views: bool = False
    max_body: int = SMALL


GENERATE = Policy(Role.INFER, gated=True, admitted=True, generates=True, logged=True, max_body=0)
INFER = replace(GENERATE, generates=False)
EMBED = replace(INFER, part=8)
OBSERVE = Policy(Role.OBSERVE, gated=True, logged=True)
ADMIN = replace(OBSERVE, role=Role.ADMIN)
PROBE = Policy(Role.OPEN)
UNSERVED = Policy(Role.OPEN, logged=True)  # what has no row of its own: no route, no method
RECORD = Policy(Role.INFER, gated=True, logged=True)
RECORD_TEXTS = replace(RECORD, max_body=256 << 10)  # with the request and the answer

ROWS: Mapping[str, Policy] = {
    "/router.v1.InferenceService/Generate": GENERATE,
    "/router.v1.InferenceService/StreamGenerate": GENERATE,
    "/router.v1.InferenceService/Route": INFER,
    "/router.v1.InferenceService/CountTokens": INFER,
    "/router.v1.AdapterService/ListAdapters": OBSERVE,
    "/router.v1.AdapterService/GetAdapter": OBSERVE,
    "/router.v1.AdapterService/WatchAdapters": replace(OBSERVE, watch=True),
    "/router.v1.AdapterService/ListPlugins": OBSERVE,
    "/router.v1.AdapterService/LoadAdapter": ADMIN,
    "/router.v1.AdapterService/UnloadAdapter": ADMIN,
    "/router.v1.AdapterService/SetDefaultVersion": ADMIN,
    "/router.v1.AdapterService/ResetDefaultVersion": ADMIN,
    "/grpc.health.v1.Health/Check": PROBE,
    "/grpc.health.v1.Health/List": PROBE,
    "/grpc.health.v1.Health/Watch": replace(PROBE, watch=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": replace(OBSERVE, watch=True),
}
"""The services of the core. A plugin brings its own rows in a `ServiceSpec`."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A gRPC service, with its rows of the policy table.

    `add` is the generated `add_...Servicer_to_server`. The methods of `servicer` get the request and the
    `router.server.call.Call`. `rows` has the policy of each method, by /SERVICE/METHOD. `problem()` says why
    the service cannot work for now, '' while it can: health answers NOT_SERVING for it, and `degraded` shows
    the text. It runs on the event loop and must not block.
    """

    add: Callable[[Any, Any], None]
    servicer: Any
    rows: Mapping[str, Policy]
    problem: Callable[[], str] | None = None


def check_rows(names: Iterable[str], rows: Mapping[str, Policy]) -> None:
    """Raise ConfigError unless each of `names` has a row."""
    if missing := sorted(set(names) - rows.keys()):
        raise ConfigError(
            f"no row of the policy table for {', '.join(missing)}: register it with rows="
            f"{{{missing[0]!r}: Policy(Role.INFER)}}, which says who may call it"
        )
