"""Which adapter answers a request."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, NotFound
from router.names import BASE
from router.plugins.host import PluginHost
from router.ports import Catalog
from router.routing.fitting import BaseFor, Knowledge, narrow
from router.routing.panel import Lanes, OnVote, Panel
from router.routing.policy import MARGIN, Conclusion, Policy, Rule, Rules, fingerprint
from router.routing.variants import digest_of, varied
from router.types import AdapterInfo, AdapterProfile, Decision, Reason, Request, Vote

if TYPE_CHECKING:
    from router.types import RouterVariant

# What the caller names: an adapter, or the base.


_RESOURCE = re.compile(
    r"adapters/([a-z0-9][a-z0-9._-]{0,62})(?:/versions/([0-9A-Za-z][0-9A-Za-z.+_-]{0,62}))?"
)


def is_base(resource: str) -> bool:
    """Whether it names the base: `base`, or `adapters/base` where only adapters can be written."""
    return resource in (BASE, f"adapters/{BASE}")


def parse_adapter(resource: str, field: str = "routing.adapter") -> tuple[str, str]:
    """Name and version ("" if not given) of a resource name. Raises InvalidRequest naming `field`."""
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        raise InvalidRequest(
            [
                FieldViolation(
                    field, "must be base, adapters/NAME or adapters/NAME/versions/VERSION, NAME in lower case"
                )
            ]
        )
    return match[1], match[2] or ""


START_SECONDS = 20.0
FIT_SECONDS = 30.0
PICK_UP_SECONDS = 0.25


class Router:
    """Explicit adapter, then hints, then classifiers in order of cost until one is sure, else the base.

    `rules` weigh the votes, or `threshold` and `margin` in [0, 1] (see policy.py); `on_vote` sees every
    vote, for metrics; `base_for` gives classifiers the base model.
    """

    def __init__(
        self,
        catalog: Catalog,
        host: PluginHost,
        *,
        threshold: float = 0.5,
        margin: float = MARGIN,
        on_vote: OnVote | None = None,
        base_for: BaseFor | None = None,
        rules: Rules | None = None,
    ) -> None:
        self._catalog, self._host = catalog, host
        self.rules = rules or Rules(Policy(threshold, margin))
        self._lanes = Lanes(base_for)
        self._panel = Panel(self._lanes, on_vote)
        self._knowledge = Knowledge(catalog, self._learn)
        self._watch: asyncio.Task[None] | None = None
        self._digested: tuple[object, object] = (None, None)  # what the digests are of
        self._digests: dict[RouterVariant | None, str] = {}

    async def start(self) -> None:
        """Load plugins, have them learn the adapters (20 s at most), and follow changes of both."""
        await self._host.pick_up()
        self._knowledge.start()
        self._host.subscribe(self._plugins_changed)
        self.rules.adapters(self._knowledge.learned)
        self._plugins_changed()
        await self._lanes.settle(START_SECONDS)
        self.rules.settle()
        self._watch = asyncio.create_task(self._host.watch(), name="plugins watch")

    async def close(self) -> None:
        """Stop following; classifiers are asked no more."""
        self._knowledge.close()
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        self._lanes.close()

    async def _learn(self, profiles: tuple[AdapterProfile, ...]) -> None:
        await self._lanes.fit(profiles, FIT_SECONDS)
        self.rules.adapters(profiles)

    def _plugins_changed(self) -> None:
        registrations = self._host.registrations()
        self._lanes.sync(registrations, self._knowledge.learned)
        self.rules.classifiers(registrations)

    async def route(self, request: Request) -> Decision:
        """The decision; never raises for a classifier's fault.

        Raises InvalidRequest (bad form of the adapter's name), AdapterNotFound, NotFound (no such domain
        or task) and FailedPrecondition (the adapter is quarantined).
        """
        return await self.decide(request)

    async def decide(
        self, request: Request, variant: RouterVariant | None = None, heard: dict[str, Vote] | None = None
    ) -> Decision:
        """The decision of this router, or of a variant of it.

        `heard` are votes on this very request: they are not asked for again, and new ones are added, so that
        a second decision costs next to nothing. Raises what `route` does.
        """
        started = time.perf_counter()
        await self._pick_up()
        decision, votes = await self._decide(request, varied(self.rules.rule, variant), heard)
        shown = tuple(votes) if request.routing.explain else ()
        return replace(decision, votes=shown, latency=time.perf_counter() - started)

    def digest(self, variant: RouterVariant | None = None) -> str:
        """sha256 of what decides beside the adapters: configuration, calibration, classifiers."""
        rule, registrations = self.rules.rule, self._host.registrations()
        if self._digested[0] is not rule or self._digested[1] is not registrations:
            self._digested, self._digests = (rule, registrations), {}
        if variant not in self._digests:
            prints = {r.name: fingerprint(r) for r in registrations}
            self._digests[variant] = digest_of(varied(rule, variant), prints)
        return self._digests[variant]

    async def _pick_up(self) -> None:
        """A plugin file dropped in a moment ago votes on this request."""
        if self._host.stale():
            before = self._host.registrations()
            await self._host.pick_up(PICK_UP_SECONDS)
            if self._host.registrations() != before:
                await self._lanes.settle(PICK_UP_SECONDS)

    async def _decide(
        self, request: Request, rule: Rule, heard: dict[str, Vote] | None
    ) -> tuple[Decision, Sequence[Vote]]:
        hints, labels = request.routing, self._knowledge.labels
        direct, candidates = self._said(request)
        if hints.explain:
            votes = await self._panel.everyone(request, labels, heard)
        elif direct is None and candidates:
            votes = await self._panel.until_settled(request, labels, candidates, rule, heard)
        else:
            votes = []
        if direct is not None:
            return direct, votes
        return self._concluded(rule.conclude(votes if candidates else [], candidates)), votes

    def _said(self, request: Request) -> tuple[Decision | None, frozenset[str]]:
        """The decision that the caller made, or the candidates that the caller left."""
        hints = request.routing
        if is_base(hints.adapter):
            return self._decision(Conclusion("", Reason.EXPLICIT, 1.0), None), frozenset()
        if hints.adapter:
            adapter = self._catalog.resolve(*parse_adapter(hints.adapter))
            return self._decision(Conclusion(adapter.ref.name, Reason.EXPLICIT, 1.0), adapter), frozenset()
        left = narrow(self._knowledge.present, hints)
        if (hints.domain or hints.task) and len(left) == 1:
            adapter = self._catalog.resolve(left[0].name)
            return self._decision(Conclusion(adapter.ref.name, Reason.HINT, 1.0), adapter), frozenset()
        return None, frozenset(profile.name for profile in left)

    def _concluded(self, conclusion: Conclusion) -> Decision:
        if not conclusion.adapter:
            return self._decision(conclusion, None)
        try:
            return self._decision(conclusion, self._catalog.resolve(conclusion.adapter))
        except (NotFound, FailedPrecondition):  # it went while classifiers were asked
            return self._decision(replace(conclusion, adapter="", reason=Reason.ABSTAINED), None)

    def _decision(self, conclusion: Conclusion, adapter: AdapterInfo | None) -> Decision:
        return Decision(
            adapter=adapter.ref if adapter else None,
            reason=conclusion.reason,
            digest=adapter.digest if adapter else "",
            domain=adapter.domain if adapter else "",
            task=adapter.task if adapter else "",
            confidence=conclusion.confidence,
            classifier=conclusion.classifier,
            threshold=conclusion.threshold,
            calibration=self.rules.status,
        )
