"""Constraints that a template makes of a prompt: `quote` is here, plugins bring others.

Where an adapter's manifest names a template, a prompt of which it makes nothing is answered freely. Where a
request names it, that is an error of the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from router.engine.base import Engine, Job, with_grammar
from router.engine.constrained.source import check_form, refused
from router.errors import FailedPrecondition, InvalidRequest, RouterError
from router.passages import ENDS, LABELS, passage_of
from router.types import CONSTRAINT_KINDS, Constraint, Turn

log = logging.getLogger(__name__)

MakeConstraint = Callable[[str], Constraint]
AT_ONCE = 4096  # characters of a prompt that is read on the event loop


class NoSource(Exception):
    """A template finds nothing in a prompt to make a constraint of; the text says what is missing."""


def quote(prompt: str) -> Constraint:
    """A span of the prompt's passage. Raises NoSource."""
    passage = passage_of(prompt)
    if not passage:
        labels = ", ".join(f"{label}:" for label in LABELS)
        raise NoSource(f"no line begins with one of {labels} with a text behind it, up to {ENDS[0]}:")
    return Constraint("quote", passage)


def source_text(turns: Sequence[Turn], raw: str | None) -> str:
    """What templates read: the text of the last user turn as the caller sent it, or a raw prompt."""
    if raw is not None:
        return raw
    return next((turn.text for turn in reversed(turns) if turn.role == "user"), "")


class ConstraintTemplates:
    """Templates by name. Thread-safe."""

    def __init__(self, of_plugins: Callable[[], Mapping[str, MakeConstraint]] = dict) -> None:
        """`of_plugins` is asked each time, since plugins come and go."""
        self._of_plugins = of_plugins

    def check(self, constraint: Constraint | None) -> None:
        """Raises InvalidRequest for the name of a template that is not there."""
        if constraint is not None and constraint.kind == "from_prompt":
            self._template(constraint)

    async def prepared(self, engine: Engine, job: Job, prompt: str) -> Job:
        """The job with its constraint compiled; one `from_prompt` is made of `prompt` first.

        Raises what `Engine.compile` raises, and InvalidRequest where a template that a request names makes
        nothing of the prompt.
        """
        asked = job.params.constraint
        if asked is None or asked.kind != "from_prompt":
            return await with_grammar(engine, job)
        try:
            if len(prompt) <= AT_ONCE:
                made = self._made(asked, prompt)
            else:
                made = await asyncio.to_thread(self._made, asked, prompt)
            # Of this request, whatever names the template: its grammar is kept for the tenant alone.
            params = replace(job.params, constraint=made)
            return await with_grammar(engine, replace(job, params=params, own_constraint=False))
        except (InvalidRequest, FailedPrecondition) as error:
            if not job.own_constraint:
                if isinstance(error, FailedPrecondition):
                    raise
                raise refused(asked, _reason(error)) from None
            log.debug("%s: answered freely: %s: %s", job.request_id, asked.text, _reason(error))
            return replace(job, params=replace(job.params, constraint=None))

    def _template(self, asked: Constraint) -> MakeConstraint:
        known = {**self._of_plugins(), "quote": quote}
        found = known.get(asked.text)
        if found is None:
            names = ", ".join(sorted(known))
            raise refused(asked, f"there is no template {asked.text[:64]!r}, but {names}")
        return found

    def _made(self, asked: Constraint, prompt: str) -> Constraint:
        """Raises InvalidRequest."""
        make = self._template(asked)
        try:
            made = make(prompt)
        except NoSource as error:
            raise refused(asked, str(error)) from None
        except Exception:
            log.exception("the constraint template %r failed", asked.text)
            raise refused(asked, "the template failed") from None
        if (
            not isinstance(made, Constraint)
            or made.kind not in CONSTRAINT_KINDS
            or made.kind == "from_prompt"
        ):
            log.error("the constraint template %r made no constraint, but %r", asked.text, made)
            raise refused(asked, "the template made no constraint")
        check_form(made)
        return made


def _reason(error: RouterError) -> str:
    return error.violations[0].description if isinstance(error, InvalidRequest) else error.message
