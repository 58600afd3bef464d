"""Playground: ask, and see the answer as it comes, with the decision and its votes; several side by side.

Each column is a call of its own, made by the page's script; which adapter a column names is what its own
response says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from router.access.clients import Role
from router.errors import FieldViolation, Findings, InvalidRequest
from router.extensions.console.decisions import decision_json
from router.extensions.console.fields import adapter_of, number, offered, put, texts, whole
from router.extensions.console.site import Action, Entry, Page, PageReply, SiteStream, Visit, data
from router.feedback.recorder import FeedbackRecorder
from router.names import AUTO, BASE
from router.server.admission import ServerPhase
from router.server.policy import Policy
from router.types import CONTINUITIES, MAX_CHOICES, MAX_STOPS, Keeping, weaker
from router.v1 import feedback_pb2 as feedback_pb
from router.v1 import inference_pb2 as pb

PLAYGROUND = Policy(Role.INFER)
INFERENCE = "/router.v1.InferenceService/"
STREAM, ROUTE = INFERENCE + "StreamGenerate", INFERENCE + "Route"
FEEDBACK = "/router.v1.FeedbackService/RecordFeedback"
MOST_TRIED = 4  # examples to begin with
COLUMNS = (2, 3, 4)  # beside the first
SHAPES = {  # of the answer: value in the form, and its label
    "": "any text",
    "json_schema": "JSON of this schema",
    "choices": "one of these lines",
    "regex": "text of this regex",
    "grammar": "text of this grammar",
}
PLACES = {  # of fields, the input of the form
    "routing.adapter": "model",
    "routing.unit": "unit",
    "routing.continuity": "continuity",
    **dict.fromkeys((f"sampling.{shape}" for shape in SHAPES if shape), "shape_text"),
    "sampling.choices.values": "shape_text",
    "sampling.stop": "stops",
    **{f"sampling.{name}": name for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")},
}


async def show(visit: Visit) -> dict[str, Any]:
    """The form, with what the address says in it."""
    server, client, typed = visit.console.server, visit.client, visit.query
    loading = server.health.phase is ServerPhase.LOADING
    return {
        "models": offered(server.registry, client.adapters, AUTO, BASE),
        "names": offered(server.registry, client.adapters, BASE, versions=False),
        "base": "" if loading else server.engine.info.name,
        "feedback": keeping(visit),  # off: there are no buttons for it
        "shapes": SHAPES,
        "continuities": CONTINUITIES,
        "places": PLACES,
        "columns": COLUMNS,
        "typed": {name: typed.get(name, "") for name in INPUTS},
        "opened": any(typed.get(name) for name in OPTIONS),
        "tries": [] if typed.get("text") else tries(visit),
    }


def keeping(visit: Visit) -> Keeping:
    """What would be kept of the client's feedback."""
    recorder = visit.console.server.part(FeedbackRecorder)
    if recorder is None or visit.why_not(FEEDBACK):
        return "off"
    return weaker(recorder.answers.keeping, visit.client.feedback)


OPTIONS = (  # that are folded unless one of them is set
    *("system", "shape", "shape_text", "temperature", "top_p", "top_k", "max_tokens"),
    *("seed", "stops", "unit", "continuity"),
)
INPUTS = ("text", "model", *(f"model-{number}" for number in COLUMNS), *OPTIONS)


def tries(visit: Visit) -> list[tuple[str, str]]:
    """Examples of a few adapters, with their names: what to ask first."""
    profiles = visit.console.server.registry.profiles()
    seen = (
        (one.name, one.examples[0]) for one in profiles if one.examples and one.name in visit.client.adapters
    )
    return list(islice(seen, MOST_TRIED))


async def decide(visit: Visit) -> PageReply:
    """Where it would go; nothing is generated."""
    request = stream_request(texts(visit.form))
    answer = await visit.ask(ROUTE, pb.RouteRequest(input=request.input, routing=request.routing))
    return data(decision_json(answer.decision))


async def stream(visit: Visit) -> None:
    """Events: `started` with the decision and all votes, `delta`, `finished`."""
    request = stream_request(texts(visit.form))

    async def write(message: pb.StreamGenerateResponse) -> None:
        kind = message.WhichOneof("event") or ""
        body = json.dumps(EVENTS[kind](getattr(message, kind)))
        await visit.call.write(f"event: {kind}\ndata: {body}\n\n".encode())

    await visit.console.server.inference.stream(request, visit.call, write)


async def feedback(visit: Visit) -> PageReply:
    """Good, bad, what the answer should have been, or who should have given it. Later feedback on an answer
    replaces the earlier."""
    form = texts(visit.form)
    verdict = VERDICTS.get(form.get("value", ""))
    if verdict is None:
        raise InvalidRequest([FieldViolation("value", "must be 1 or 0")])
    corrected, better = (form.get(name, "").strip() for name in ("corrected", "should_have_been"))
    message = feedback_pb.RecordFeedbackRequest(
        response_id=form.get("response_id", ""),
        verdict=feedback_pb.FEEDBACK_VERDICT_CORRECTED if corrected else verdict,
        corrected=corrected,
        should_have_been=(adapter_of(better) or AUTO) if better else "",
    )
    said = await visit.ask(FEEDBACK, message)
    kept = feedback_pb.FeedbackKept.Name(said.kept).removeprefix("FEEDBACK_KEPT_").lower()
    return data({"kept": kept, "replaced": said.replaced})


def stream_request(form: Mapping[str, str]) -> pb.StreamGenerateRequest:
    """The request that a form makes. Raises InvalidRequest naming every bad field."""
    found = Findings()
    sampling = pb.Sampling()
    put(
        sampling,
        **{name: number(found, f"sampling.{name}", form.get(name, "")) for name in ("temperature", "top_p")},
        **{name: whole(found, f"sampling.{name}", form.get(name, "")) for name in ("max_tokens", "top_k")},
        seed=whole(found, "sampling.seed", form.get("seed", ""), 64),
    )
    stops = [line for line in form.get("stops", "").split("\n") if line]
    if len(stops) > MAX_STOPS:
        found.add("sampling.stop", f"must have at most {MAX_STOPS} lines, got {len(stops)}")
    else:
        sampling.stop.extend(stops)
    _shape(sampling, form, found)
    continuity = form.get("continuity", "")
    if continuity not in ("", *CONTINUITIES):
        found.add("routing.continuity", f"must be one of {', '.join(CONTINUITIES)}")
        continuity = ""
    found.check()
    routing = pb.Routing(
        adapter=adapter_of(form.get("model", "")),
        unit=form.get("unit", "").strip(),
        explain=form.get("explain") == "yes",
        continuity=f"CONTINUITY_{continuity.upper() or 'UNSPECIFIED'}",
    )
    return pb.StreamGenerateRequest(input=_input(form), sampling=sampling, routing=routing)


def _shape(sampling: pb.Sampling, form: Mapping[str, str], found: Findings) -> None:
    """What the answer must look like."""
    shape, text = form.get("shape", ""), form.get("shape_text", "").strip()
    if not shape:
        return
    if shape not in SHAPES:
        found.add("sampling.constraint", f"must be one of {', '.join(filter(None, SHAPES))}")
    elif not text:
        found.add(f"sampling.{shape}", "must not be empty")
    elif shape == "choices":
        values = [line.strip() for line in text.split("\n") if line.strip()]
        if len(values) > MAX_CHOICES:
            found.add("sampling.choices", f"must have at most {MAX_CHOICES} lines, got {len(values)}")
        else:
            sampling.choices.values.extend(values)
    else:
        setattr(sampling, shape, text)


def _input(form: Mapping[str, str]) -> pb.Input:
    """One text; with a system prompt or earlier turns, a chat. `earlier-0` is what the user sent first,
    `earlier-1` the answer, and so on."""
    system, text = form.get("system", "").strip(), form.get("text", "")
    earlier: list[str] = []
    while (one := form.get(f"earlier-{len(earlier)}")) is not None:
        earlier.append(one)
    if not system and not earlier:
        return pb.Input(text=text)
    messages = [pb.ChatMessage(role=pb.ROLE_SYSTEM, text=system)] if system else []
    for i, turn in enumerate([*earlier, text]):
        messages.append(pb.ChatMessage(role=pb.ROLE_ASSISTANT if i % 2 else pb.ROLE_USER, text=turn))
    return pb.Input(chat=pb.Chat(messages=messages))


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
VERDICTS = {"1": feedback_pb.FEEDBACK_VERDICT_GOOD, "0": feedback_pb.FEEDBACK_VERDICT_BAD}

ENTRIES: tuple[Entry, ...] = (
    Page("/playground", PLAYGROUND, show, "playground.html", "Playground", nav="Playground"),
    Action("/playground/route", ROUTE, decide),
    SiteStream("/playground/stream", STREAM, stream),
    Action("/playground/feedback", FEEDBACK, feedback),
)
