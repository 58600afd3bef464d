"""Feedback: what users think of each adapter's answers, and for administrators the latest with texts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.errors import FailedPrecondition, InvalidRequest, NotFound
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.feedback.model import VERDICTS, Feedback, Verdict
from router.feedback.recorder import OFF
from router.feedback.store import FeedbackCount
from router.names import BASE
from router.server.policy import OBSERVE
from router.server.status import public_message
from router.v1 import feedback_pb2 as pb

SERVICE = "/router.v1.FeedbackService/"
LIST, DELETE = SERVICE + "ListFeedback", SERVICE + "DeleteFeedback"
DAY = 86_400.0
DAYS = (7, 30, 90)
MOST_ADAPTERS, MOST_SHOWN = 200, 40
LONG = 600  # characters of a text that are shown at once
WORDS: Mapping[Verdict, tuple[str, str]] = {
    "good": ("good", "ok"),
    "bad": ("bad", "bad"),
    "corrected": ("corrected", "warn"),
}
KEPT: Mapping[str, str] = {
    "off": "Nothing is kept: feedback is refused.",
    "labels": "The verdict, the version and a hash of the user are kept, without texts. An adapter learns"
    " from feedback with texts only.",
    "texts": "The verdict, the version and a hash of the user are kept, and for clients that agree to it"
    " also the request, the answer, corrections and comments.",
}


@dataclass
class Opinions:
    """Feedback on an adapter, or one of its versions."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    latest: float = 0.0
    versions: dict[str, Opinions] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Of all verdicts."""
        return self.counts.total()

    @property
    def good(self) -> float:
        """The share that is good."""
        return self.counts["good"] / self.total if self.total else 0.0

    def add(self, one: FeedbackCount) -> None:
        """Count it."""
        self.counts[one.verdict] += one.count
        self.latest = max(self.latest, one.latest)


def opinions(found: Iterable[FeedbackCount]) -> list[Opinions]:
    """By adapter, most feedback first, each with its versions, the latest first."""
    every: dict[str, Opinions] = {}
    for one in found:
        whole = every.setdefault(one.adapter, Opinions(one.adapter))
        whole.add(one)
        whole.versions.setdefault(one.version, Opinions(one.version)).add(one)
    return sorted(every.values(), key=lambda one: (-one.total, one.name))


async def show(visit: Visit) -> dict[str, Any]:
    """Counts by adapter."""
    recorder, days = visit.console.context.feedback, _days(visit)
    found: list[Opinions] = []
    keeping = recorder.answers.keeping if recorder is not None else "off"
    if recorder is not None:
        counts = await recorder.counted(time.time() - days * DAY, "", tenant_of(visit))
        visible = visit.client.adapters
        found = [one for one in opinions(counts) if one.name == BASE or one.name in visible]
    return {
        "off": OFF if recorder is None else "",
        "shown": found[:MOST_ADAPTERS],
        "left_out": max(0, len(found) - MOST_ADAPTERS),
        "days": days,
        "choices": DAYS,
        "kept": KEPT[keeping],
        "keeping": keeping,
        "keeps": recorder.days if recorder is not None else 0,
        "address": address(visit),
        "deleted": visit.query.get("deleted", ""),
        "why_no_texts": visit.why_not(LIST),
        "why_no_deletion": visit.why_not(DELETE) if recorder is not None else "off",
        "typed": {"unit_hash": visit.query.get("unit_hash", "")},
        "wrong": "",
    }


async def detail(visit: Visit) -> dict[str, Any]:
    """The latest feedback on one adapter. The call is ListFeedback's: role and audit are the same."""
    recorder, name = visit.console.context.feedback, visit.path("name")
    if recorder is None:
        raise FailedPrecondition(OFF)
    if name != BASE and name not in visit.client.adapters:
        raise NotFound("adapter", name)
    visit.call.resource = name if name == BASE else f"adapters/{name}"
    days = _days(visit)
    counts = await recorder.counted(time.time() - days * DAY, name, tenant_of(visit))
    only = next((one for one in VERDICTS if one == visit.query.get("only")), None)
    latest = await recorder.latest(name, MOST_SHOWN, tenant_of(visit), only)
    return {
        "title": f"Feedback on {name}",
        "name": name,
        "days": days,
        "choices": DAYS,
        "of": next(iter(opinions(counts)), Opinions(name)),
        "latest": [entry_of(one) for one in latest],
        "most": MOST_SHOWN,
        "kept": KEPT[recorder.answers.keeping],
        "words": WORDS,
        "only": only or "",
    }


def entry_of(one: Feedback) -> dict[str, Any]:
    """One as the page shows it: the last turn of the request, and texts in two parts if they are long."""
    asked = one.messages[-1][1] if one.messages else ""
    texts = (("Asked", asked), ("Answer", one.answer or ""), ("Should have been", one.corrected or ""))
    return {
        "it": one,
        "turns": len(one.messages),
        "texts": [(title, text[:LONG], text[LONG:]) for title, text in texts if text],
    }


def _days(visit: Visit) -> int:
    typed = visit.query.get("days", "")
    return int(typed) if typed in {str(days) for days in DAYS} else DAYS[1]


def tenant_of(visit: Visit) -> str | None:
    """Whose feedback the client may see: all tenants' only if it may know of all adapters."""
    return None if visit.client.adapters.everything else visit.client.tenant


def address(visit: Visit) -> str:
    """Of the server for curl, as the browser reached it."""
    return f"{'https://' if visit.call.secure else ''}{visit.call.header('host')}"


async def delete(visit: Visit) -> PageReply:
    """Delete all feedback of a unit, named or by its hash."""
    unit, known = (visit.form.get(name, "").strip() for name in ("unit", "unit_hash"))
    message = pb.DeleteFeedbackRequest(unit=unit, unit_hash=known)
    try:
        gone = (await visit.ask(DELETE, message)).deleted
    except (InvalidRequest, FailedPrecondition) as error:
        values = await show(visit)
        visit.refused_with(PAGE, values | {"wrong": public_message(error), "typed": dict(visit.form)})
        raise
    return redirect(f"{ROOT}/feedback?deleted={gone}")


PAGE = Page("/feedback", OBSERVE, show, "feedback.html", "Feedback", nav="Feedback")

ENTRIES: tuple[Entry, ...] = (
    PAGE,
    Page("/feedback/{name}", LIST, detail, "feedback_of.html"),
    Action("/feedback/delete", DELETE, delete),
)
