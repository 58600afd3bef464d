"""Feedback in the console: counts for all who may look, texts and deletion for administrators alone."""

from __future__ import annotations

import time
from types import SimpleNamespace

from router.feedback.model import Feedback, Verdict
from router.units import unit_hash
from tests.extensions.console.conftest import Roled, post

HOME = "/console/feedback"
EVIL = "<script>alert(1)</script>"


def given(site: SimpleNamespace, number: int, verdict: Verdict, adapter: str = "medical") -> None:
    """Feedback with texts, of the unit anna."""
    one = Feedback(
        f"r{number}",
        time.time() - number,
        "",
        unit_hash("anna"),
        adapter,
        "1.0.0",
        verdict,
        messages=(("user", f"Which chapter? {EVIL}"),),
        answer="Chapter XI",
        corrected="Chapter XII" if verdict == "corrected" else None,
        comment="it is a disease of the skin" if verdict == "bad" else "",
    )
    site.server.feedback.store.put(one)


async def test_an_empty_page_says_how_to_send_the_first(opened: SimpleNamespace) -> None:
    shown = (await opened.http.get(HOME)).text
    assert f"curl {opened.server.http_address}/v1/feedback" in shown
    assert "without texts" in shown  # what is kept
    assert "needs the role" not in shown


async def test_counts_are_for_observers_and_texts_for_administrators(roled: Roled) -> None:
    site = await roled()
    for number, verdict in enumerate(("good", "good", "bad", "corrected")):
        given(site, number, verdict)  # type: ignore[arg-type]
    given(site, 9, "bad", "legal")
    counted = (await site.olga.get(HOME)).text
    assert "<strong>50 % good</strong> of 4" in counted
    assert counted.index(">medical<") < counted.index(">legal<")  # most feedback first
    assert "Chapter" not in counted
    assert f'action="{HOME}/delete"' not in counted
    assert (await site.olga.get(HOME + "/medical")).status_code == 403
    assert (await site.ivan.get(HOME)).status_code == 403
    latest = (await site.anna.get(HOME + "/medical")).text
    for words in ("Chapter XII", "disease of the skin", "&lt;script&gt;", unit_hash("anna")[:8]):
        assert words in latest, words
    assert EVIL not in latest
    assert "Chapter XII" not in (await site.anna.get(HOME + "/medical?only=bad")).text
    acts = [(e.act.method, e.act.resource) for e in site.server.recent]
    assert ("router.v1.FeedbackService/ListFeedback", "adapters/medical") in acts
    assert (await site.anna.get(HOME + "/unknown")).status_code == 200  # as ListFeedback: it may be gone


async def test_what_a_user_sent_is_deleted(roled: Roled) -> None:
    site = await roled()
    given(site, 1, "good")
    assert (await post(site.olga, HOME + "/delete", unit="anna")).status_code == 403
    refused = await post(site.anna, HOME + "/delete", unit="", unit_hash="")
    assert (refused.status_code, "unit: must be there" in refused.text) == (400, True), refused.text
    gone = await post(site.anna, HOME + "/delete", unit="anna")
    assert (gone.status_code, gone.headers["location"]) == (303, HOME + "?deleted=1")
    assert not site.server.feedback.store.counts()


async def test_without_feedback_the_page_says_why(start_web, fakes, http) -> None:  # type: ignore[no-untyped-def]
    server = await start_web(**vars(fakes), feedback="off")
    shown = (await http(server).get(HOME)).text
    assert "Feedback is off" in shown
    assert (await http(server).get(HOME + "/medical")).status_code == 400
