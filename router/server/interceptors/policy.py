"""Which layers a method gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """`gated`: refused while loading or draining; `admitted`: takes a place; `watch`: ended by a drain."""

    gated: bool = False
    admitted: bool = False
    watch: bool = False
    logged: bool = False


INFERENCE = Policy(gated=True, admitted=True, logged=True)
ADMIN = Policy(gated=True, logged=True)
ADMIN_WATCH = Policy(gated=True, watch=True, logged=True)
OTHER = Policy()
OTHER_WATCH = Policy(watch=True)

SERVICES = {
    "router.v1.InferenceService": INFERENCE,
    "router.v1.AdapterService": ADMIN,
    "router.v1.ExperimentService": ADMIN,
}
METHODS = {
    "/router.v1.AdapterService/WatchAdapters": ADMIN_WATCH,
    "/router.v1.ExperimentService/RecordOutcomes": ADMIN_WATCH,
    "/grpc.health.v1.Health/Watch": OTHER_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OTHER_WATCH,
}


def policy_of(method: str) -> Policy:
    """By method, else by service; health and reflection are open while loading and draining."""
    return METHODS.get(method) or SERVICES.get(method.rpartition("/")[0][1:], OTHER)
