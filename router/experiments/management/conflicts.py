"""Which experiments may run beside each other: no unit may be in two whose effects would mix."""

from __future__ import annotations

from collections.abc import Iterable

from router.experiments.model import Experiment, Lifecycle, Spec


def conflict(name: str, spec: Spec, others: Iterable[Experiment]) -> str:
    """Why `spec` cannot run beside those that run; empty if it can.

    Experiments of one namespace need slots apart, and units of one kind, or slots would divide nothing. Two
    on one route need one namespace. A router experiment runs beside those of routes: it draws its own units
    before them.
    """
    running = (e for e in others if e.state is Lifecycle.RUNNING and e.name != name)
    return next(filter(None, (_between(spec, other) for other in running)), "")


def _between(spec: Spec, other: Experiment) -> str:
    shared = spec.namespace != "" and spec.namespace == other.spec.namespace
    if shared and spec.unit_label != other.spec.unit_label:
        return (
            f"its units are read from {_place(spec)}, those of {other.resource}, which runs in the namespace "
            f"{spec.namespace!r} too, from {_place(other.spec)}: units of a namespace must be one thing"
        )
    if shared and _overlap(spec.slot, other.spec.slot):
        mine, theirs = (f"[{low:g}, {high:g})" for low, high in (spec.slot, other.spec.slot))
        return (
            f"its slot {mine} of the namespace {spec.namespace!r} overlaps {theirs} of "
            f"{other.resource}, which runs: choose slots apart, or stop the other"
        )
    if spec.route == other.spec.route and not shared:
        where = f"the route {spec.route!r}" if spec.route else "all routes, as a router experiment"
        return (
            f"{other.resource} runs on {where} already: give both one namespace and slots apart, so that "
            "they share no unit, or stop the other"
        )
    return ""


def _place(spec: Spec) -> str:
    return f"the label {spec.unit_label!r}" if spec.unit_label else "routing.unit"


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
