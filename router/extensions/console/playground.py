"""Playground: ask, see what was decided and by which votes, and the answer as it comes; several side by side.

Each column is a call of its own, made by the page's script; what a column says of who answered is what its
own response says. Two columns may be compared blind: their order is random, and who answered is shown after
the choice, which is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from router.access.clients import Role
from router.errors import (
    FailedPrecondition,
    FieldViolation,
    Findings,
    InvalidRequest,
    Overloaded,
    StoreDown,
)
from router.extensions.console.fields import AUTO, BASE, adapter_of, number, offered, put, texts, whole
from router.extensions.console.site import Action, Entry, Page, PageReply, SiteStream, Visit, data
from router.names import model_of
from router.server.admission import ServerPhase
from router.server.policy import Policy
from router.v1 import experiments_pb2 as experiments
from router.v1 import inference_pb2 as pb

PLAYGROUND = Policy(Role.INFER)
STREAM = "/router.v1.InferenceService/StreamGenerate"
ROUTE = "/router.v1.InferenceService/Route"
THUMBS = "thumbs_up"
MOST_SCORES = 6  # of a classifier, the surest first
WHY: Mapping[int, tuple[str, str]] = {
    pb.DECISION_REASON_EXPLICIT: ("named", "The request named who should answer."),
    pb.DECISION_REASON_HINT: ("hint", "Domain or task left one candidate."),
    pb.DECISION_REASON_CLASSIFIED: ("classified", "The classifiers were sure enough."),
    pb.DECISION_REASON_ABSTAINED: ("abstained", "Nobody was sure enough: the base answers."),
    pb.DECISION_REASON_FALLBACK: ("fallback", "No classifier could be asked: the base answers."),
    pb.DECISION_REASON_UNFAMILIAR: (
        "unfamiliar",
        "Sure, but the request is unlike all that the adapters know: the base answers.",
    ),
}


async def show(visit: Visit) -> dict[str, Any]:
    """The form, and what people preferred so far; the page's script does the rest."""
    context, client = visit.console.context, visit.client
    loading = context.health.phase is ServerPhase.LOADING
    corrections = "" if context.corrections is not None else CORRECTIONS_OFF
    return {
        "models": offered(context.registry, client.adapters, AUTO, BASE),
        "names": offered(context.registry, client.adapters, BASE, versions=False),
        "base": "" if loading else context.engine.info.name,
        "no_corrections": corrections or visit.why_not(CORRECTION),
        "no_outcomes": context.no_experiments or visit.why_not(OUTCOME),
        "no_preferences": "" if context.preferences is not None else NO_PREFERENCES,
        "preferred": await preferred(visit),
        "values": visit.query,
    }


async def preferred(visit: Visit) -> list[dict[str, str]]:
    """What people preferred of versions that the client may know of; nothing while the database is down."""
    if visit.console.context.preferences is None:
        return []
    try:
        found = await visit.console.context.preferences.compared()
    except (StoreDown, Overloaded):
        return []
    return [
        {
            "version": one.version,
            "other": one.other,
            "text": one.text,
            "ties": one.ties,
            "reading": one.reading,
            "people": f"{one.pairs.units:,}",
        }
        for one in found
        if all(
            name == BASE or name.partition("@")[0] in visit.client.adapters
            for name in (one.version, one.other)
        )
    ][:MOST_PREFERRED]


CORRECTION = "/router.v1.InferenceService/RecordCorrection"
OUTCOME = "/router.v1.ExperimentService/RecordOutcome"
CORRECTIONS_OFF = "Corrections are off here: `lora-router serve --corrections labels` turns them on."


NO_PREFERENCES = "Blind comparisons need experiments, whose database keeps them."
MOST_PREFERRED = 50  # pairs of versions


async def decide(visit: Visit) -> PageReply:
    """Where it would go; nothing is generated."""
    request = stream_request(texts(visit.form))
    answer = await visit.ask(ROUTE, pb.RouteRequest(input=request.input, routing=request.routing))
    return data(decision_json(answer.decision))


async def stream(visit: Visit) -> None:
    """Events: `started` with the decision and all votes, `delta`, `finished`."""
    request = stream_request(texts(visit.form))
    preferences = visit.console.context.preferences if visit.form.get("blind") == "yes" else None

    async def write(message: pb.StreamGenerateResponse) -> None:
        kind = message.WhichOneof("event") or ""
        if kind == "started" and preferences is not None:
            model = model_of(message.started.decision)
            preferences.hide(message.started.response_id, model, visit.call.actor)
        body = json.dumps(EVENTS[kind](getattr(message, kind)))
        await visit.call.write(f"event: {kind}\ndata: {body}\n\n".encode())

    await visit.console.inference.stream(request, visit.call, write)


async def correct(visit: Visit) -> PageReply:
    """Who should have answered."""
    form = texts(visit.form)
    message = pb.RecordCorrectionRequest(
        response_id=form.get("response_id", ""),
        adapter=adapter_of(form.get("adapter", "")),
        text=form.get("text", ""),
    )
    answer = await visit.ask(CORRECTION, message)
    return data({"kept": pb.CorrectionKept.Name(answer.kept).removeprefix("CORRECTION_KEPT_").lower()})


async def judge(visit: Visit) -> PageReply:
    """A thumb up or down, as an outcome. The first of an answer counts."""
    rid, value = visit.form.get("response_id", ""), visit.form.get("value", "")
    if value not in ("0", "1"):
        raise InvalidRequest([FieldViolation("value", "must be 1 or 0")])
    outcome = experiments.Outcome(
        response_id=rid, metric=THUMBS, value=float(value), idempotency_key=f"console-{rid[:64]}"
    )
    answer = await visit.ask(OUTCOME, experiments.RecordOutcomeRequest(outcome=outcome))
    name = experiments.OutcomeStatus.Name(answer.status)
    return data({"status": name.removeprefix("OUTCOME_STATUS_").lower()})


async def prefer(visit: Visit) -> PageReply:
    """Record which of two answers is better. The reply names who gave them."""
    preferences, form = visit.console.context.preferences, visit.form
    if preferences is None:
        raise FailedPrecondition(NO_PREFERENCES)
    answers = (form.get("left", ""), form.get("right", ""))
    left, right = await preferences.keep(*answers, form.get("choice", ""), visit.call.actor)
    rows = [row for row in await preferred(visit) if {row["version"], row["other"]} == {left, right}]
    return data({"left": left, "right": right, "so_far": rows[0] if rows else None})


def stream_request(form: Mapping[str, str]) -> pb.StreamGenerateRequest:
    """The request that a form makes. Raises InvalidRequest naming every bad field."""
    found = Findings()
    sampling = pb.Sampling()
    put(
        sampling,
        temperature=number(found, "sampling.temperature", form.get("temperature", "")),
        max_tokens=whole(found, "sampling.max_tokens", form.get("max_tokens", "")),
        seed=whole(found, "sampling.seed", form.get("seed", ""), 64),
    )
    found.check()
    routing = pb.Routing(
        adapter=adapter_of(form.get("model", "")),
        unit=form.get("unit", "").strip(),
        explain=form.get("explain") == "yes",
    )
    turn = pb.Input(text=form.get("text", ""))
    return pb.StreamGenerateRequest(input=turn, sampling=sampling, routing=routing)


def decision_json(decision: pb.Decision) -> dict[str, Any]:
    """For the page's script."""
    word, why = WHY.get(decision.reason, ("", ""))
    return {
        "model": model_of(decision),
        "adapter": decision.adapter,
        "digest": decision.digest,
        "reason": word,
        "why": why,
        "confidence": decision.confidence,
        "threshold": decision.threshold,
        "classifier": decision.classifier,
        "experiment": decision.experiment,
        "arm": decision.arm,
        "calibration": decision.calibration,
        "seconds": decision.route_latency.ToTimedelta().total_seconds(),
        "votes": [vote_json(vote) for vote in decision.votes],
    }


def vote_json(vote: pb.Vote) -> dict[str, Any]:
    """One classifier's, its surest names first."""
    scores = sorted(vote.scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "classifier": vote.classifier,
        "scores": scores[:MOST_SCORES],
        "more": max(0, len(scores) - MOST_SCORES),
        "declined": vote.declined,
        "error": vote.error,
        "evidence": vote.evidence,
        "seconds": vote.latency.ToTimedelta().total_seconds(),
    }


def _started(message: pb.Started) -> dict[str, Any]:
    return {"response_id": message.response_id, "decision": decision_json(message.decision)}


def _delta(message: pb.Delta) -> dict[str, Any]:
    return {"text": message.text, "tokens": message.tokens}


def _finished(message: pb.Finished) -> dict[str, Any]:
    usage = message.usage
    return {
        "reason": pb.FinishReason.Name(message.reason).removeprefix("FINISH_REASON_").lower(),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "tokens": usage.completion_tokens,
        "queued": usage.queue_time.ToTimedelta().total_seconds(),
        "first": usage.time_to_first_token.ToTimedelta().total_seconds(),
        "total": usage.total_time.ToTimedelta().total_seconds(),
    }


EVENTS: Mapping[str, Any] = {"started": _started, "delta": _delta, "finished": _finished}

ENTRIES: tuple[Entry, ...] = (
    Page("/playground", PLAYGROUND, show, "playground.html", "Playground", nav="Playground"),
    Action("/playground/route", ROUTE, decide),
    SiteStream("/playground/stream", STREAM, stream),
    Action("/playground/correction", CORRECTION, correct),
    Action("/playground/outcome", OUTCOME, judge),
    Action("/playground/preference", PLAYGROUND, prefer),
)
