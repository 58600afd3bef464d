"""Which adapter answers a request: the one the caller names, else the one a classifier is sure of, else the
base.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from router.classifiers.texts import is_foreign
from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, NotFound
from router.names import BASE, parse_adapter
from router.passages import PASSAGE_WORDS, has_passage
from router.ports import Catalog
from router.routing.chain import CatalogView, ClassifierChain, Executors, OnVote
from router.routing.conversations import (
    QUIET_SECONDS,
    Classification,
    Previous,
    RecentByTenant,
    TurnDecision,
    choose,
    routing_input,
)
from router.routing.executor import BaseFor
from router.routing.in_force import CALIBRATED, CalibrationFile, CalibrationFollower, RuleInForce, fingerprint
from router.routing.policy import Conclusion, Leaning, Rule
from router.routing.state import RoutingState, routing_state
from router.types import (
    AdapterInfo,
    AdapterProfile,
    Decision,
    MixturePart,
    Reason,
    Request,
    Turn,
    Visible,
    Vote,
    VotesByClassifier,
)

if TYPE_CHECKING:
    from router.plugins import PluginHost

LOST = "the calibration expects the vote of "  # and classifiers
IN_LANGUAGE = "the text is in another language than the examples"
IN_CONTEXT = "more than the text of this turn decided"
NO_PASSAGE = (
    f"Not considered: {{}}, which answers from a passage; the request has none: no text with at least "
    f"{PASSAGE_WORDS} words, and no line that begins with Passage:, Context:, Text:, Article: or Document:."
)
READY_SECONDS = 600.0  # which only a classifier that hangs takes
FIT_SECONDS = 30.0
CLOSE_SECONDS = 3.0  # for fits in progress
PICK_UP_SECONDS = 0.25
FIELD, MIXTURE_FIELD = "routing.adapter", "routing.mixture"  # where a caller names adapters
_RESOURCE = re.compile(
    r"adapters/([a-z0-9][a-z0-9._-]{0,62})(?:/versions/([0-9A-Za-z][0-9A-Za-z.+_-]{0,62}))?"
)


class Router:
    """Explicit adapter, then hints, then classifiers in order of cost until one is sure, else the base.

    `rule` decides by their votes, and its calibration follows the file `calibration`; `base_for` gives
    classifiers the base model; below the folder `keep` they keep what outlives the process; `start` waits
    `ready_seconds` for classifiers at most.
    """

    def __init__(
        self,
        catalog: Catalog,
        host: PluginHost,
        *,
        base_for: BaseFor | None = None,
        rule: RuleInForce | None = None,
        calibration: CalibrationFile | None = None,
        keep: Path | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._catalog, self._host, self._ready_seconds = catalog, host, ready_seconds
        self.rule = rule or RuleInForce(Rule())
        self._executors = Executors(base_for, keep / "routing" if keep is not None else None)
        self._catalog_view = CatalogView(catalog, self._learn)
        self._chain = ClassifierChain(self._executors, self._is_foreign)
        self._learning = asyncio.Lock()  # one new set at a time
        self._follower: CalibrationFollower | None = None
        if calibration is not None:
            self._follower = CalibrationFollower(calibration, self.rule)
        self._watch: asyncio.Task[None] | None = None
        self._digested: tuple[object, object] = (None, None)  # what the digest is of
        self._digest = ""
        # By the names that callers give.
        self._conversations: RecentByTenant[Previous] = RecentByTenant(QUIET_SECONDS)
        # By a keyed hash of the text, of the rule `_classified_by`.
        self._classifications: RecentByTenant[Classification] = RecentByTenant(QUIET_SECONDS)
        self._classified_by: object = None
        self._key = secrets.token_bytes(32)

    def observe_votes(self, on_vote: OnVote) -> None:
        """Have `on_vote` called with every vote, for metrics and traces."""
        self._chain.on_vote = on_vote

    async def start(self) -> None:
        """Load plugins, wait until those that are asked have learned the adapters, and follow changes."""
        await self._host.pick_up()
        self._catalog_view.start()
        self._host.subscribe(self._classifiers_changed)
        self.rule.adapters_are(self._catalog_view.learned)
        self._classifiers_changed()
        if self._catalog_view.learned:  # else there is nothing to choose from
            await self._executors.wait_for_fits(self._ready_seconds, with_base=True)
        await self._executors.fit(self._catalog_view.learned, wait=0)
        self._watch = asyncio.create_task(self._host.watch(), name="plugins watch")
        if self._follower is not None:
            self._follower.start()

    @property
    def flaws(self) -> list[str]:
        """Why decisions may be worse now: classifiers that give no votes,
        adapters that could not be learned, a calibration file that cannot be used."""
        unused = self._follower.flaws if self._follower is not None else []
        return [
            flaw
            for flaw in (
                self._catalog_view.flaw,
                *(executor.flaw for executor in self._executors.in_order()),
                *unused,
            )
            if flaw
        ]

    async def close(self) -> None:
        """Stop following; classifiers are asked no more."""
        self._catalog_view.close()
        if self._follower is not None:
            self._follower.close()
        self._chain.close()
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._executors.close(CLOSE_SECONDS)

    def state(self) -> RoutingState:
        """What decides, and the latest decisions."""
        return routing_state(self.rule, self._catalog_view.learned, self._host.status())

    async def _learn(self, profiles: tuple[AdapterProfile, ...]) -> None:
        async with self._learning:
            await self._executors.fit(profiles, FIT_SECONDS)
            self._classifications.clear()
            self.rule.adapters_are(profiles)

    def _classifiers_changed(self) -> None:
        registrations = self._host.registrations()
        self.rule.classifiers_are(registrations)
        self._executors.sync(registrations, self._catalog_view.learned)

    def _is_foreign(self, text: str) -> bool:
        return is_foreign(text, self._catalog_view.languages)

    async def route(
        self,
        request: Request,
        threshold: float | None = None,
        known_votes: VotesByClassifier | None = None,
    ) -> Decision:
        """The decision on a request, by another threshold if one is given; never raises for a classifier's
        fault.

        `known_votes` are votes on this very request. Their classifiers are not asked again, and new votes are
        added, so that a second decision costs next to nothing.

        Raises InvalidRequest (bad form of the adapter's name), AdapterNotFound, NotFound (no such domain
        or task) and FailedPrecondition (the adapter is quarantined).
        """
        started = time.perf_counter()
        decision, votes = await self._decide(request, threshold, {} if known_votes is None else known_votes)
        shown = tuple(seen(vote, request.visible) for vote in votes) if request.routing.explain else ()
        return replace(decision, votes=shown, latency=time.perf_counter() - started)

    async def _pick_up_classifiers(self) -> None:
        """A plugin file dropped in a moment ago votes on this request."""
        if self._host.stale():
            before = self._host.registrations()
            await self._host.pick_up(PICK_UP_SECONDS)
            if self._host.registrations() != before:
                await self._executors.wait_for_fits(PICK_UP_SECONDS)

    async def _decide(
        self, request: Request, threshold: float | None, known_votes: VotesByClassifier
    ) -> tuple[Decision, Sequence[Vote]]:
        own, candidates = self._caller_choice(request)
        hints = request.routing
        if own is not None and not hints.explain:
            return own, ()
        await self._pick_up_classifiers()
        unfit = candidates & self._catalog_view.needing_passage()
        if unfit and has_passage(user_texts(request)):
            unfit = frozenset()
        candidates -= unfit
        note = NO_PASSAGE.format(", ".join(sorted(unfit))) if unfit and hints.explain else ""
        classify = TextClassifier(self, request, threshold, candidates, known_votes)
        if own is not None or not candidates:
            votes = (await classify(request.text)).votes if hints.explain else ()
            if own is not None:
                return own, votes
            none = self._decision(Conclusion("", Reason.ABSTAINED), None)
            return replace(none, note=note or self._catalog.why_none(request.visible)), votes
        mode = hints.continuity or "adaptive"
        remembered = None
        if hints.conversation and not hints.fresh and mode != "none":
            remembered = self._conversations.get(request.tenant, hints.conversation)
            if remembered is not None and remembered.conclusion.adapter not in (*candidates, ""):
                remembered = None
        chosen = await choose(routing_input(request), classify, mode, remembered, hints.fresh)
        decision = self._of_turn(chosen, request.visible)
        if decision.adapter is None:
            decision = replace(decision, note=note)
        return decision, chosen.classification.votes

    def _of_turn(self, chosen: TurnDecision, visible: Visible) -> Decision:
        """The decision on a turn of a conversation."""
        decision = self._carried_out(chosen.conclusion, visible)
        lost, status = chosen.classification.lost, decision.calibration
        if status == CALIBRATED and lost:
            status = LOST + ", ".join(f"{one.classifier} ({one.reason})" for one in lost)
        elif status == CALIBRATED and chosen.conclusion.foreign:
            status = IN_LANGUAGE
        elif status == CALIBRATED and not chosen.alone:
            status = IN_CONTEXT
        return replace(
            decision,
            votes_lost=lost,
            calibration=status,
            continuity=chosen.progress,
            previous=chosen.previous,
            undecided=chosen.undecided,
        )

    def answered(self, request: Request, decision: Decision) -> None:
        """The request is being answered as decided: the conversation that it names goes on from here."""
        hints = request.routing
        if not hints.conversation or (hints.continuity or "adaptive") == "none" or decision.mixture:
            return
        if decision.undecided and decision.continuity != "kept":
            self._conversations.drop(request.tenant, hints.conversation)
            return
        name, reason = "", Reason.ABSTAINED
        if decision.adapter is not None:
            name, reason = decision.adapter.name, Reason.CLASSIFIED
        conclusion = Conclusion(name, reason, decision.confidence, decision.classifier, decision.threshold)
        self._conversations.put(request.tenant, hints.conversation, Previous(conclusion, decision.undecided))

    def _caller_choice(self, request: Request) -> tuple[Decision | None, frozenset[str]]:
        """The decision that the caller made, or the candidates that the caller left."""
        hints, visible = request.routing, request.visible
        if is_base(hints.adapter):
            return self._decision(Conclusion("", Reason.EXPLICIT, 1.0), None), frozenset()
        if hints.adapter:
            adapter = self._catalog.resolve(*parse_routed_adapter(hints.adapter), visible)
            return self._decision(Conclusion(adapter.ref.name, Reason.EXPLICIT, 1.0), adapter), frozenset()
        if hints.mixture:
            alone, parts = resolve_mixture(self._catalog, hints.mixture, visible)
            name = alone.ref.name if alone is not None else ""
            decision = self._decision(Conclusion(name, Reason.EXPLICIT, 1.0), alone)
            return replace(decision, mixture=parts), frozenset()
        left = self._catalog_view.candidates(hints, visible)
        if (hints.domain or hints.task) and len(left) == 1:
            adapter = self._catalog.resolve(next(iter(left)), "", visible)
            return self._decision(Conclusion(adapter.ref.name, Reason.HINT, 1.0), adapter), frozenset()
        return None, left

    def _carried_out(self, conclusion: Conclusion, visible: Visible) -> Decision:
        if not conclusion.adapter:
            return self._decision(conclusion, None)
        try:
            return self._decision(conclusion, self._catalog.resolve(conclusion.adapter, "", visible))
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
            calibration=self.rule.status(conclusion.adapter),
        )

    def digest(self) -> str:
        """sha256 of what decides beside the adapters: configuration, calibration, classifiers."""
        rule, registrations = self.rule.now, self._host.registrations()
        if self._digested[0] is not rule or self._digested[1] is not registrations:
            self._digest = rule.digest({r.name: fingerprint(r) for r in registrations})
            self._digested = (rule, registrations)
        return self._digest


class TextClassifier:
    """Asks the classifiers about texts of one request."""

    def __init__(
        self,
        router: Router,
        request: Request,
        threshold: float | None,
        candidates: frozenset[str],
        known_votes: VotesByClassifier,
    ) -> None:
        self._router, self._request, self._known_votes = router, request, known_votes
        self._threshold, self._candidates = threshold, candidates
        rule = router.rule.now
        self._rule = rule if threshold is None else replace(rule, threshold=threshold)

    async def __call__(self, text: str, again: bool = False) -> Classification:
        """As `conversations.Classify` has it."""
        router, request, rule, candidates = self._router, self._request, self._rule, self._candidates
        key = self._key(text)
        if again and (found := router._classifications.get(request.tenant, key)) is not None:
            return found
        shown = request
        if text != request.text:
            shown = replace(request, turns=(Turn("user", text),), raw_prompt=None)
        known, labels = self._known_votes.setdefault(text, {}), router._catalog_view.labels
        if request.routing.explain and not again:
            votes = await router._chain.everyone(shown, labels, known)
        else:
            votes = await router._chain.until_settled(shown, labels, candidates, rule, known)
        conclusion = rule.conclude(votes, candidates)
        leaning = Leaning() if conclusion.adapter else rule.leaning(votes, candidates)
        found = Classification(conclusion, leaning, votes, router._chain.lost(votes, candidates, rule))
        if not any(vote.error for vote in votes):
            router._classifications.put(request.tenant, key, replace(found, votes=()))
        return found

    def _key(self, text: str) -> tuple[object, ...]:
        router = self._router
        if router._classified_by is not router.rule.now:  # results by another rule hold no longer
            router._classifications.clear()
            router._classified_by = router.rule.now
        data = text.encode("utf-8", "surrogatepass")
        return (
            hashlib.blake2b(data, key=router._key, digest_size=16).digest(),
            self._threshold,
            self._candidates,
        )


def resolve_mixture(
    catalog: Catalog, named: Sequence[tuple[str, float]], visible: Visible
) -> tuple[AdapterInfo | None, tuple[MixturePart, ...]]:
    """The parts, a version each; or the adapter itself where it is the only one and weighs 1.

    Raises what `Catalog.resolve` does, and InvalidRequest where two names are of one version.
    """
    found: list[AdapterInfo] = []
    for number, (name, _) in enumerate(named):
        field = f"{MIXTURE_FIELD}[{number}].adapter"
        info = catalog.resolve(*parse_adapter(name, field), visible)
        if any(info.ref == other.ref for other in found):
            text = f"{info.ref} is in the mixture already: name a version once, with all its weight"
            raise InvalidRequest([FieldViolation(field, text)])
        found.append(info)
    weights = [weight for _, weight in named]
    if weights == [1.0]:
        return found[0], ()
    return None, tuple(MixturePart(info.ref, weight) for info, weight in zip(found, weights, strict=True))


def user_texts(request: Request) -> Sequence[str]:
    """What the user wrote: all turns, or the raw prompt."""
    if request.raw_prompt is not None:
        return (request.raw_prompt,)
    return [turn.text for turn in request.turns if turn.role == "user"]


def seen(vote: Vote, visible: Visible) -> Vote:
    """The vote as a caller may see it: evidence may name any adapter, so it goes where one is hidden."""
    if visible.everything:
        return vote
    scores = {name: score for name, score in vote.scores.items() if name in visible}
    declined = vote.declined or bool(vote.scores and not scores)
    return replace(vote, scores=scores, declined=declined, evidence="")


def is_base(resource: str) -> bool:
    """Whether it names the base: `base`, or `adapters/base` where only adapters can be written."""
    return resource in (BASE, f"adapters/{BASE}")


def parse_routed_adapter(resource: str) -> tuple[str, str]:
    """Name and version ("" if not given) of an adapter that a request names. Raises InvalidRequest."""
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        form = "must be base, adapters/NAME or adapters/NAME/versions/VERSION, NAME in lower case"
        raise InvalidRequest([FieldViolation(FIELD, form)])
    return match[1], match[2] or ""
