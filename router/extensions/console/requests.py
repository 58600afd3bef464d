"""Requests: the latest ones, refused and failed first; each with its decision, times and feedback.

Texts are shown to administrators, and only where the server keeps them for feedback with the
client's consent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from router.access.clients import Role
from router.errors import Findings, NotFound, Unavailable
from router.extensions.console.decisions import decision_json
from router.extensions.console.fields import options, page_number
from router.extensions.console.request_log import TONES, Outcome, PastRequest
from router.extensions.console.site import Entry, Page, Visit
from router.feedback.model import VERDICTS, Feedback
from router.feedback.recorder import FeedbackRecorder
from router.server.inference import decision_message
from router.server.policy import Policy

REQUESTS = Policy(Role.OBSERVE)
TEXT = Policy(Role.ADMIN)  # users' words: each look is in the audit
PAGE_SIZE = 40

FILTERS = ("outcome", "code", "adapter", "client", "feedback")


async def show(visit: Visit) -> dict[str, Any]:
    """The page. Raises InvalidRequest."""
    found = Findings()
    page = page_number(found, visit.query)
    found.check()
    wanted = {name: visit.query.get(name, "") for name in FILTERS}
    every = visit.console.requests.seen_by(visit.client)
    rows = [one for one in every if fits(one, wanted)]
    if wanted["feedback"]:
        verdicts = await feedback_on(visit, rows)
        rows = [one for one in rows if verdicts.get(one.response_id) == wanted["feedback"]]
    first = (page - 1) * PAGE_SIZE
    shown = rows[first : first + PAGE_SIZE]
    choices: dict[str, Collection[str]] = {
        "outcome": list(Outcome),
        "code": options((one.code for one in every), wanted["code"]),
        "adapter": options((one.adapter[0] for one in every), wanted["adapter"]),
        "client": options((one.client for one in every), wanted["client"]),
    }
    if visit.console.server.part(FeedbackRecorder) is not None:
        choices["feedback"] = VERDICTS
    return {
        "rows": shown,
        "verdicts": await feedback_on(visit, shown),
        "choices": choices,
        "wanted": wanted,
        "count": len(rows),
        "first": first + 1,
        "page": page,
        "more": len(rows) > first + PAGE_SIZE,
        "tones": TONES,
        "everything": visit.client.adapters.everything,
    }


def fits(one: PastRequest, wanted: dict[str, str]) -> bool:
    """Whether it passes the filters, but for that of feedback."""
    own = {"outcome": one.outcome, "code": one.code, "adapter": one.adapter[0], "client": one.client}
    return all(wanted[name] in ("", value) for name, value in own.items())


async def feedback_on(visit: Visit, requests: Iterable[PastRequest]) -> dict[str, str]:
    """Verdicts by response id; none where no feedback is kept, or it cannot be read now."""
    return {one.response_id: one.verdict for one in await opinions(visit, requests)}


async def opinions(visit: Visit, requests: Iterable[PastRequest]) -> Sequence[Feedback]:
    """Feedback on these requests."""
    recorder = visit.console.server.part(FeedbackRecorder)
    keys = [(one.tenant, one.response_id) for one in requests if one.response_id]
    if recorder is None or not keys:
        return ()
    try:
        return await recorder.read(lambda store: store.on(keys))
    except Unavailable:  # the recorder has logged it
        return ()


# -- One request


async def detail(visit: Visit) -> dict[str, Any]:
    """Its page, without texts. Raises NotFound."""
    one = request_of(visit)
    said = await feedback_on(visit, [one])
    return {
        "title": f"Request {one.number}",
        "one": one,
        "tones": TONES,
        "decision": decision_json(decision_message(one.decision, True)) if one.decision is not None else None,
        "verdict": said.get(one.response_id, ""),
        "no_text": visit.why_not(TEXT),
        "texts": None,
    }


def request_of(visit: Visit) -> PastRequest:
    """The one that the path names. Raises NotFound."""
    number, every = visit.path("number"), visit.console.requests.seen_by(visit.client)
    one = next((one for one in every if str(one.number) == number), None)
    if one is None:
        raise NotFound("request", number, ": it never was, or it is no longer among the latest")
    return one


async def text(visit: Visit) -> dict[str, Any]:
    """Its page, with all that is kept of its text and feedback. Raises NotFound."""
    one, server = request_of(visit), visit.console.server
    visit.call.resource = one.response_id
    texts: list[tuple[str, str]] = []
    if (recorder := server.part(FeedbackRecorder)) is not None:
        given = recorder.answers.recent.get(one.response_id, one.tenant)
        said = next(iter(await opinions(visit, [one])), None)
        messages = (given.messages if given is not None else ()) or (
            said.messages if said is not None else ()
        )
        answer = (given.answer if given is not None else None) or (said.answer if said is not None else None)
        texts += [*messages, ("answer", answer or "")]
        if said is not None:
            texts += [("should have been", said.corrected or ""), ("comment", said.comment)]
            texts += [("should have answered", said.should_have_been)]
    return {**await detail(visit), "texts": [(title, said) for title, said in texts if said]}


ENTRIES: tuple[Entry, ...] = (
    Page("/requests", REQUESTS, show, "requests.html", "Requests", nav="Requests"),
    Page("/requests/{number}", REQUESTS, detail, "request.html"),
    Page("/requests/{number}/text", TEXT, text, "request.html"),
)
