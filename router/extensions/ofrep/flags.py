"""OpenFeature's remote evaluation: experiments as flags, whose variants are their arms.

Source: https://github.com/open-feature/protocol (OFREP, service/openapi.yaml)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from router.access.clients import Role
from router.errors import ExperimentNotFound, FailedPrecondition, FieldViolation, InvalidRequest
from router.ports import UNIT_MISSING, Experiments, Place
from router.server.http import JSON, HttpCall, Route
from router.server.policy import OBSERVE, Policy
from router.server.requests import MAX_LABEL_BYTES, MAX_UNIT_BYTES
from router.types import Request, RoutingHints, Visible

TARGETING_KEY = "context.targetingKey"
CODES = {  # by reason, then by field
    "EXPERIMENT_NOT_FOUND": "FLAG_NOT_FOUND",
    TARGETING_KEY: "TARGETING_KEY_MISSING",
    "context": "INVALID_CONTEXT",
    "body": "PARSE_ERROR",
    "request": "PARSE_ERROR",
    "content-type": "PARSE_ERROR",
}
ABSENT = "experiments are off: set `experiments.enabled` to true"
MOST_OF_KEY = 256  # characters of a key that nobody has
FLAGS = "/ofrep/v1/evaluate/flags"
EVALUATE = replace(OBSERVE, role=Role.INFER)
ROWS: Mapping[str, Policy] = {f"POST {FLAGS}": EVALUATE, f"POST {FLAGS}/{{key}}": EVALUATE}


def routes(experiments: Experiments | None) -> Sequence[Route]:
    """All flags, and the flag that the path names."""
    flags = Flags(experiments)
    return (
        Route("POST", FLAGS, flags.all, parse_context, call=FlagCall),
        Route("POST", FLAGS + "/{key}", flags.one, parse_context, call=FlagCall),
    )


class FlagCall(HttpCall):
    """A call whose errors name the flag."""

    def refusal(self, status: int, reason: str, message: str, field: str) -> tuple[str, bytes]:
        """In the shape of OFREP."""
        body = error_json(self.path_parameter("key"), status, reason, message, field)
        return JSON, json.dumps(body).encode()


class Flags:
    """Experiments as flags: which arm a unit would get. A question, and no exposure."""

    def __init__(self, experiments: Experiments | None) -> None:
        self._experiments = experiments

    async def one(self, evaluation: EvaluationContext, call: HttpCall) -> Mapping[str, Any]:
        """The flag of the path."""
        key = call.path_parameter("key")
        place = next((place for place in self._places(evaluation, call) if place.experiment == key), None)
        if place is None:
            raise ExperimentNotFound(key)
        if place.outside == UNIT_MISSING:
            raise missing(place.label)
        return flag_json(place)

    async def all(self, evaluation: EvaluationContext, call: HttpCall) -> Mapping[str, Any]:
        """Every flag that the client sees."""
        if not evaluation.unit:
            raise missing()
        return {"flags": [flag_json(place) for place in self._places(evaluation, call)]}

    def _places(self, evaluation: EvaluationContext, call: HttpCall) -> Sequence[Place]:
        if self._experiments is None:
            raise FailedPrecondition(ABSENT)
        client = call.client
        return self._experiments.places(request_of(evaluation, client.adapters, client.experiments))


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """A context: who is asked for, and what else is known of them, as labels of a request say it."""

    unit: str
    labels: Mapping[str, str]


def parse_context(body: bytes) -> EvaluationContext:
    """Of bytes. Raises InvalidRequest."""
    try:
        document = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidRequest([FieldViolation("body", "must be an object of JSON")])
    context = document.get("context") or {}
    if not isinstance(context, dict):
        raise InvalidRequest([FieldViolation("context", "must be an object")])
    unit = context.pop("targetingKey", None) or ""
    if not isinstance(unit, str) or len(unit.encode("utf-8", "surrogatepass")) > MAX_UNIT_BYTES:
        text = f"targetingKey must be a text of at most {MAX_UNIT_BYTES} bytes"
        raise InvalidRequest([FieldViolation("context", text)])
    return EvaluationContext(
        unit, {name: text for name, value in context.items() if (text := label_of(value))}
    )


def label_of(value: Any) -> str:
    """An attribute as a label; '' for what can be none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = str(value)
    return text if len(text.encode("utf-8", "surrogatepass")) <= MAX_LABEL_BYTES else ""


def request_of(evaluation: EvaluationContext, adapters: Visible, experiments: Visible) -> Request:
    """A request of that unit."""
    hints = RoutingHints(unit=evaluation.unit)
    return Request("", routing=hints, labels=evaluation.labels, visible=adapters, experiments=experiments)


def missing(label: str = "") -> InvalidRequest:
    """There is no unit, or a word that stands for none; `label` where that would be an attribute."""
    what = f"the attribute {label!r} is its unit, and" if label else "it names the unit, and"
    return InvalidRequest([FieldViolation(TARGETING_KEY, f"{what} must say who is served")])


def flag_json(place: Place) -> dict[str, Any]:
    """An experiment as a flag; it has no value for a unit outside, so that the caller's default counts."""
    if place.outside == UNIT_MISSING:
        details = missing(place.label).message
        return {"key": place.experiment, "errorCode": CODES[TARGETING_KEY], "errorDetails": details}
    metadata: dict[str, Any] = {"phase": place.phase}
    if place.outside:
        return {
            "key": place.experiment,
            "reason": "DEFAULT",
            "variant": "",
            "metadata": metadata | {"outside": place.outside},
        }
    metadata |= {"control": place.control, "share": place.share}
    if place.answers:
        metadata["adapter"] = place.answers
    return {
        "key": place.experiment,
        "value": place.arm,
        "variant": place.arm,
        "reason": "SPLIT",
        "metadata": metadata,
    }


def error_json(key: str, status: int, reason: str, message: str, field: str) -> dict[str, Any]:
    """An error; what the protocol has no code for is GENERAL, and begins with the reason of gRPC callers."""
    code = CODES.get(reason) or CODES.get(field, "GENERAL")
    details = f"{reason}: {message}" if code == "GENERAL" else message
    flag = {"key": key[:MOST_OF_KEY]} if key else {}
    return flag | {"errorCode": code, "errorDetails": details}
