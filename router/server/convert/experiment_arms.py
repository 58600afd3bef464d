"""Routes and arms of experiments: model and proto, both ways."""

from __future__ import annotations

from router.experiments.management.arms import BASE
from router.experiments.model import ArmSpec, RouterVariant
from router.names import VERSION_FORM, split_adapter
from router.server.convert.findings import Findings
from router.types import AdapterRef
from router.v1 import experiments_pb2 as pb


def route_of(route: str, field: str, found: Findings) -> str:
    """The adapter's name, `base`, or nothing."""
    if route in ("", BASE):
        return route
    name, version = split_adapter(route) or ("", "")
    if not name or version or name == BASE:
        found.add(field, "must be adapters/NAME, base, or empty for a router experiment")
        return BASE
    return name


def route_name(route: str) -> str:
    """The route as clients see it."""
    return route if route in ("", BASE) else f"adapters/{route}"


def arm_of(message: pb.Experiment.Arm, field: str, found: Findings) -> ArmSpec:
    """The arm; an adapter's name that is none is noted and left out."""
    ref = None
    if message.adapter:
        name, version = split_adapter(message.adapter) or ("", "")
        if version:
            ref = AdapterRef(name, version)
        else:
            text = f"must be {VERSION_FORM}, so that it stays the same while the experiment runs"
            found.add(f"{field}.adapter", text)
    router = _variant_of(message.router) if message.HasField("router") else None
    return ArmSpec(message.name, message.weight, ref, router)


def arm_message(arm: ArmSpec) -> pb.Experiment.Arm:
    """The arm as proto."""
    return pb.Experiment.Arm(
        name=arm.name,
        weight=arm.weight,
        adapter=arm.adapter.resource if arm.adapter else "",
        router=None if arm.router is None else _variant_message(arm.router),
    )


def _variant_of(message: pb.Experiment.RouterVariant) -> RouterVariant:
    said = {
        name: getattr(message, name)
        for name in ("threshold", "task_first", "domain_first")
        if message.HasField(name)
    }
    return RouterVariant(classifiers=tuple(message.classifiers) or None, **said)


def _variant_message(variant: RouterVariant) -> pb.Experiment.RouterVariant:
    return pb.Experiment.RouterVariant(
        threshold=variant.threshold,
        classifiers=variant.classifiers or (),
        task_first=variant.task_first,
        domain_first=variant.domain_first,
    )
