"""Labels of classifiers and hints of callers, as sets of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from router.errors import NotFound
from router.types import AdapterProfile, RoutingHints


class Labels:
    """What a label stands for. A name wins over a domain, a domain over a task of the same text."""

    def __init__(self, profiles: Iterable[AdapterProfile]) -> None:
        names: dict[str, tuple[str, ...]] = {}
        domains: dict[str, tuple[str, ...]] = {}
        tasks: dict[str, tuple[str, ...]] = {}
        for profile in profiles:
            names[profile.name] = (profile.name,)
            if profile.domain:
                domains[profile.domain] = (*domains.get(profile.domain, ()), profile.name)
            if profile.task:
                tasks[profile.task] = (*tasks.get(profile.task, ()), profile.name)
        self._adapters: Mapping[str, tuple[str, ...]] = {**tasks, **domains, **names}

    def spread(self, confidences: Mapping[str, float]) -> dict[str, float]:
        """Confidence of each adapter: its own label's if there is one, else the best of those it falls under.

        Labels that stand for no adapter are left out.
        """
        spread: dict[str, float] = {}
        for label, confidence in confidences.items():
            for adapter in self._adapters.get(label, ()):
                if label == adapter or adapter not in confidences:
                    spread[adapter] = max(confidence, spread.get(adapter, 0.0))
        return spread


def narrow(profiles: Sequence[AdapterProfile], hints: RoutingHints) -> tuple[AdapterProfile, ...]:
    """The profiles that fit the hints; all of them if there is no hint.

    Those that match every hint come first; where there are none, those that match one hint and leave
    the other axis open (a translator of no domain serves domain "legal", task "translation"). Raises
    NotFound, saying which domains or tasks there are.
    """
    wanted = [(axis, value) for axis, value in (("domain", hints.domain), ("task", hints.task)) if value]
    for axis, value in wanted:
        have = sorted({getattr(p, axis) for p in profiles} - {""})
        if value not in have:
            there = ", ".join(have) or "none"
            raise NotFound(axis, value, f": no adapter that may be routed to has it; there are {there}")
    exact = tuple(p for p in profiles if all(getattr(p, axis) == value for axis, value in wanted))
    if exact:
        return exact
    open_ended = tuple(p for p in profiles if all(getattr(p, axis) in (value, "") for axis, value in wanted))
    near = tuple(p for p in open_ended if any(getattr(p, axis) == value for axis, value in wanted))
    if not near and wanted:
        both = f"domain {hints.domain}, task {hints.task}"
        raise NotFound("adapter", both, ": no adapter that may be routed to has both")
    return near
