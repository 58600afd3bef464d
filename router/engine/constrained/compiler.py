"""Compiles constraints to grammars in worker threads, once each, and keeps those that are used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from router.engine.constrained.source import VocabularySpec, explained, grammar_text, limits, refused, why_not
from router.engine.constrained.state import GrammarState
from router.engine.constrained.trial import Trials
from router.engine.constrained.work import Lexer, Work, counts
from router.engine.fairness import VirtualCounters
from router.engine.tenant_cache import TenantCache
from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, Overloaded, Unavailable
from router.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 128  # constraints of at most SMALL characters, of all tenants
SMALL = 4096
MOST_WAITING = 64  # constraints, of all tenants, with those being compiled
THREADS = 2
PLAIN = ("choices", "quote")  # bounded, whatever they say: a server with no others has no process more


class CompiledGrammar:
    """A constraint that answers can follow; each has its own state."""

    def __init__(self, constraint: Constraint, spec: VocabularySpec, matcher: LLMatcher) -> None:
        self.constraint = constraint
        self._spec, self._matcher = spec, matcher
        self._begin = counts(matcher)
        self._lexer = Lexer(self._begin.fuel)

    @property
    def spoiled(self) -> bool:
        """Whether an answer broke off at a limit of the library, which copies of a matcher share."""
        return self._lexer.spoiled

    def start(self, forcing: bool = True) -> GrammarState:
        """The state at the beginning of an answer."""
        work = Work(self._begin, self._lexer, schema=self.constraint.kind == "json_schema")
        return GrammarState(self._matcher.deep_copy(), self.constraint, self._spec, work, forcing=forcing)


Outcome = CompiledGrammar | tuple[FieldViolation, ...]


@dataclass(eq=False, slots=True)
class _PendingGrammar:
    """A constraint of a tenant: compiled, being compiled, or in the queue."""

    constraint: Constraint
    tenant: str
    future: Future[Outcome] = field(default_factory=Future)
    callers: int = 0  # that wait for it


class Grammars:
    """Compiles constraints for one base. `compile` is for event loops, the rest for its own threads.

    Tenants take turns: the next constraint is of the tenant of which the fewest were compiled. Where too many
    wait, the newest of the tenant with the most gives way, so that no tenant can take all places.

    What was compiled or refused is kept for its tenant, the most recently used first, and one that is asked
    for twice at once is compiled once. The vocabulary is read with the first.
    """

    def __init__(self, find_spec: Callable[[], VocabularySpec | str]) -> None:
        """`find_spec` gives the vocabulary, or why this base's answers cannot be constrained."""
        self._find_spec = find_spec
        self._kept: TenantCache[Constraint, _PendingGrammar] = TenantCache(KEPT, _size)
        self._queues: dict[str, list[_PendingGrammar]] = {}  # by tenant, none is empty
        self._counters = VirtualCounters()  # in constraints
        self._busy = 0  # threads
        self._threads = ThreadPoolExecutor(THREADS, "grammars")
        self._closed = False
        self._lock = Lock()
        self._reading = Lock()
        self._read: _Base | str | None = None  # why not, where it cannot be

    async def compile(self, constraint: Constraint, tenant: str = "") -> CompiledGrammar:
        """The grammar. Raises InvalidRequest, FailedPrecondition, Overloaded.

        `tenant` is "" for constraints of adapters, which are not kept for each tenant.
        """
        pending = self._pending_of(constraint, tenant)
        try:
            outcome = await asyncio.shield(asyncio.wrap_future(pending.future))
        finally:
            self._left(pending)
        if isinstance(outcome, CompiledGrammar):
            return outcome
        raise InvalidRequest(outcome)

    def close(self) -> None:
        """Let threads and processes go."""
        with self._lock:
            self._closed = True
            waiting = [pending for queue in self._queues.values() for pending in queue]
            self._queues.clear()
        for pending in waiting:
            pending.future.cancel()
        self._threads.shutdown(wait=False)
        if isinstance(self._read, _Base):
            self._read.trials.close()

    def _pending_of(self, constraint: Constraint, tenant: str) -> _PendingGrammar:
        """The one that is kept, or a new one in the queue, with one more caller."""
        displaced = None
        with self._lock:
            if self._closed:
                raise Unavailable("the engine has stopped")
            pending = self._kept.get(tenant, constraint)
            if pending is None or _worthless(pending.future):
                displaced = self._make_room(tenant)
                pending = _PendingGrammar(constraint, tenant)
                self._queues.setdefault(tenant, []).append(pending)
                self._counters.enter(tenant)
                self._kept.put(tenant, constraint, pending)
                self._start()
            pending.callers += 1
        if displaced is not None:
            displaced.future.set_exception(_overloaded())
        return pending

    def _make_room(self, tenant: str) -> _PendingGrammar | None:
        """The one that gives way to another of `tenant`, if the queue is full. Raises Overloaded."""
        if self._busy + sum(map(len, self._queues.values())) < MOST_WAITING:
            return None
        most = max(self._queues, key=lambda name: len(self._queues[name]))
        if len(self._queues[most]) <= len(self._queues.get(tenant, ())) + 1:
            raise _overloaded()
        displaced = self._queues[most][-1]
        self._drop(displaced)
        return displaced

    def _left(self, pending: _PendingGrammar) -> None:
        """One caller less; a constraint for which no caller waits any more leaves the queue."""
        with self._lock:
            pending.callers -= 1
            if not pending.callers and pending in self._queues.get(pending.tenant, ()):
                self._drop(pending)

    def _drop(self, pending: _PendingGrammar) -> None:
        """Out of the queue, without having been compiled."""
        self._dequeue(pending)
        self._kept.discard(pending.tenant, pending.constraint, pending)

    def _dequeue(self, pending: _PendingGrammar) -> None:
        queue = self._queues[pending.tenant]
        queue.remove(pending)
        if not queue:
            del self._queues[pending.tenant]
        self._counters.leave(pending.tenant)

    def _start(self) -> None:
        """Give threads the next constraints."""
        while self._queues and self._busy < THREADS and not self._closed:
            tenant = min(self._queues, key=self._counters.served)
            pending = self._queues[tenant][0]
            self._dequeue(pending)
            self._counters.charge(tenant, 1)
            self._busy += 1
            self._threads.submit(self._run, pending)

    def _run(self, pending: _PendingGrammar) -> None:
        try:
            outcome = self._make(pending.constraint)
        except BaseException as error:  # raised where it is waited for
            pending.future.set_exception(error)
        else:
            pending.future.set_result(outcome)
        finally:
            with self._lock:
                self._busy -= 1
                self._start()

    def _make(self, constraint: Constraint) -> Outcome:
        base = self._base()
        try:
            matcher = _compiled(base, constraint)
        except InvalidRequest as error:
            return error.violations
        return CompiledGrammar(constraint, base.spec, matcher)

    def _base(self) -> _Base:
        if problem := why_not():
            raise FailedPrecondition(problem)
        with self._reading:
            if self._read is None:
                spec = self._find_spec()
                self._read = spec if isinstance(spec, str) else _Base(spec, spec.tokens(), Trials(spec))
        if isinstance(self._read, str):
            raise FailedPrecondition(f"answers of this base cannot be constrained: {self._read}")
        return self._read


def _size(constraint: Constraint) -> int:
    """As how many small ones it counts: what a quote keeps in memory is 100 times as long as its text."""
    return -(-(len(constraint.text) + sum(map(len, constraint.choices))) // SMALL) or 1


def _overloaded() -> Overloaded:
    return Overloaded("too many constraints wait to be compiled", bound="constraints")


def _worthless(known: Future[Outcome]) -> bool:
    """Whether it has to be compiled again."""
    if not known.done():
        return False
    if known.cancelled() or known.exception() is not None:
        return True
    outcome = known.result()
    return isinstance(outcome, CompiledGrammar) and outcome.spoiled


@dataclass(frozen=True, slots=True)
class _Base:
    """What is read of a base once."""

    spec: VocabularySpec
    tokens: LLTokenizer
    trials: Trials


def _compiled(base: _Base, constraint: Constraint) -> LLMatcher:
    """Raises InvalidRequest."""
    from llguidance import LLMatcher

    grammar, problem = grammar_text(constraint), ""
    if constraint.kind not in PLAIN:
        problem = base.trials.run(grammar, constraint.kind)
    if not problem:
        matcher = LLMatcher(base.tokens, grammar, log_level=0, limits=limits(constraint.kind))
        problem = matcher.get_error()
    if problem:
        raise refused(constraint, explained(constraint, problem))
    return matcher
