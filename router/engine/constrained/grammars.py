"""Constraints compiled once, beside everything else, and kept while they are used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from router.engine.constrained.explain import explained
from router.engine.constrained.follow import Follower
from router.engine.constrained.source import grammar_text, refused
from router.engine.constrained.trial import Trials
from router.engine.constrained.vocabulary import VocabularySpec, limits
from router.errors import FailedPrecondition, FieldViolation, InvalidRequest, Overloaded
from router.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 128
MOST_WAITING = 64
THREADS = 2


class CompiledGrammar:
    """A constraint that answers can follow; each follows its own copy."""

    def __init__(self, constraint: Constraint, spec: VocabularySpec, matcher: LLMatcher) -> None:
        self.constraint = constraint
        self.spoiled = False  # an answer broke off: copies share what the library learns, and its limits
        self._spec, self._matcher = spec, matcher

    def follower(self, forcing: bool = True) -> Follower:
        """At the beginning of an answer."""
        copied = self._matcher.deep_copy()
        return Follower(copied, self.constraint, self._spec, forcing=forcing, on_error=self._spoil)

    def _spoil(self) -> None:
        self.spoiled = True


Outcome = CompiledGrammar | tuple[FieldViolation, ...]


class Grammars:
    """Compiles constraints for one base. `compile` is for event loops, the rest for its own threads.

    What was compiled or refused is kept, the most recently used first, and one that is asked for twice at
    once is compiled once. The vocabulary is read with the first.
    """

    def __init__(self, find_spec: Callable[[], VocabularySpec | str]) -> None:
        """`find_spec` gives the vocabulary, or why this base's answers cannot be constrained."""
        self._find_spec = find_spec
        self._kept: OrderedDict[Constraint, Future[Outcome]] = OrderedDict()
        self._threads = ThreadPoolExecutor(THREADS, "grammars")
        self._lock = Lock()
        self._reading = Lock()
        self._read: _Base | str | None = None  # why not, where it cannot be

    async def compile(self, constraint: Constraint) -> CompiledGrammar:
        """The grammar. Raises InvalidRequest, FailedPrecondition, Overloaded."""
        outcome = await asyncio.shield(asyncio.wrap_future(self._asked(constraint)))
        if isinstance(outcome, CompiledGrammar):
            return outcome
        raise InvalidRequest(outcome)

    def close(self) -> None:
        """Let threads and processes go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._read, _Base):
            self._read.trials.close()

    def _asked(self, constraint: Constraint) -> Future[Outcome]:
        with self._lock:
            known = self._kept.get(constraint)
            if known is None or _worthless(known):
                if sum(not future.done() for future in self._kept.values()) >= MOST_WAITING:
                    raise Overloaded("too many constraints wait to be compiled")
                known = self._kept[constraint] = self._threads.submit(self._make, constraint)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(constraint)
            return known

    def _make(self, constraint: Constraint) -> Outcome:
        base = self._base()
        try:
            matcher = _compiled(base, constraint)
        except InvalidRequest as error:
            return error.violations
        return CompiledGrammar(constraint, base.spec, matcher)

    def _base(self) -> _Base:
        with self._reading:
            if self._read is None:
                spec = self._find_spec()
                self._read = spec if isinstance(spec, str) else _Base(spec, spec.tokens(), Trials(spec))
        if isinstance(self._read, str):
            raise FailedPrecondition(f"answers of this base cannot be constrained: {self._read}")
        return self._read


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
    if (
        constraint.kind != "choices"
    ):  # which are bounded and plain: a server with no others has no process more
        problem = base.trials.run(grammar)
    if not problem:
        matcher = LLMatcher(base.tokens, grammar, log_level=0, limits=limits())
        problem = matcher.get_error()
    if problem:
        raise refused(constraint, explained(constraint, problem))
    return matcher
