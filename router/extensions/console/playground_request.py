"""The playground's form as a request, and where the form shows what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping

from router.errors import Findings
from router.extensions.console.fields import adapter_of, number, put, whole
from router.types import CONTINUITIES, MAX_CHOICES, MAX_STOPS
from router.v1 import inference_pb2 as pb

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
