"""Messages of the Open Inference Protocol and those of InferenceService that mean the same.

One text is a tensor of type BYTES with one element, in `contents` or raw: four bytes of its length, the
lowest first, then the text. Names of inputs and outputs are those of Triton's backend for vLLM. Sources:
https://github.com/kserve/open-inference-protocol (gRPC), https://github.com/triton-inference-server/vllm_backend
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.errors import FieldViolation, Findings, InvalidRequest
from router.kserve import open_inference_pb2 as oip
from router.names import AUTO, BASE, split_adapter
from router.server.bodies import count_json
from router.types import MAX_CONSTRAINT_BYTES
from router.v1 import inference_pb2 as pb

TEXT, STREAM, SAMPLING, OUTPUT = "text_input", "stream", "sampling_parameters", "text_output"
DATATYPES = {TEXT: "BYTES", STREAM: "BOOL", SAMPLING: "BYTES"}
ONE = ([1], [1, 1])  # shapes of one element, with a batch or without
INTEGERS = ("max_tokens", "min_tokens", "top_k", "seed")
NUMBERS = (
    *("temperature", "top_p", "min_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)
SHAPES = ("json_schema", "regex", "grammar", "quote", "from_prompt")
HINTS = ("unit", "domain", "task")
EMPTY_LAST, IS_LAST = "triton_enable_empty_final_response", "triton_final_response"
MODEL_FORM = "must be auto, base or an adapter's name, with one of its versions or none"
FIELDS = {"input.text": TEXT, "routing.adapter": "model_name", "routing.": "", "sampling.": ""}
MAX_PARAMETER_BYTES = 8 * MAX_CONSTRAINT_BYTES  # of a text of JSON, where characters may be escaped
SHOWN = 64  # characters of a name that nobody knows


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a request says. `empty_last`: a stream ends with a message that has no outputs."""

    request: oip.ModelInferRequest
    message: pb.GenerateRequest | pb.StreamGenerateRequest
    empty_last: bool

    @property
    def stream(self) -> bool:
        """Whether text is wanted as it comes."""
        return isinstance(self.message, pb.StreamGenerateRequest)


def parse_request(request: oip.ModelInferRequest) -> ParsedRequest:
    """Read it. Raises InvalidRequest naming every bad field."""
    found = Findings()
    adapter = adapter_of(request.model_name, request.model_version, found)
    inputs = _inputs(request, found)
    for i, output in enumerate(request.outputs):
        if output.name != OUTPUT or output.parameters:
            found.add(f"outputs[{i}]", f"must be {OUTPUT}, without parameters")
    text = _text(inputs.get(TEXT, b""), TEXT, found)
    if TEXT not in inputs:
        found.add("inputs", f"{TEXT} must be among them, and right")
    values = _json(inputs.get(SAMPLING, b"{}"), found)
    values |= {name: _value(value) for name, value in request.parameters.items()}
    stream = _flag(values, STREAM, found) or bool(inputs.get(STREAM))
    empty_last = _flag(values, EMPTY_LAST, found)
    kind = pb.StreamGenerateRequest if stream else pb.GenerateRequest
    message = kind(input=pb.Input(text=text), routing=pb.Routing(adapter=adapter), sampling=pb.Sampling())
    for name, value in values.items():
        if not _put(message, name, value):
            found.add(f"parameters[{name[:SHOWN]}]", "is not known here, or not such a value")
    found.check()
    return ParsedRequest(request, message, empty_last)


def adapter_of(name: str, version: str, found: Findings) -> str:
    """The resource name of a model; '' for `auto`."""
    if name in (AUTO, BASE):
        if version:
            found.add("model_version", f"{name} has no versions")
        return "" if name == AUTO else BASE
    resource = f"adapters/{name}" + (f"/versions/{version}" if version else "")
    if split_adapter(resource) != (name, version):
        found.add("model_name", MODEL_FORM)
    return resource


# -- Tensors that come


def _inputs(request: oip.ModelInferRequest, found: Findings) -> dict[str, Any]:
    """The element of each input; those that are wrong are left out, and noted."""
    raw, values = request.raw_input_contents, dict[str, Any]()
    if raw and len(raw) != len(request.inputs):
        found.add("raw_input_contents", f"{len(raw)} entries, and there are {len(request.inputs)} inputs")
        return {}
    for i, tensor in enumerate(request.inputs):
        wrong = _wrong(tensor, values, bool(raw))
        value = None if wrong else _raw(tensor, raw[i]) if raw else _element(tensor)
        if wrong or value is None:
            part, text = wrong or ("contents", f"must be one element of type {tensor.datatype}")
            found.add(f"inputs[{i}].{part}", text)
        else:
            values[tensor.name] = value
    return values


def _wrong(tensor: Any, before: Mapping[str, Any], raw: bool) -> tuple[str, str] | None:
    """The part of a tensor that is not as it must be, and how it must be."""
    datatype = DATATYPES.get(tensor.name)
    if datatype is None:
        return "name", f"must be one of {', '.join(DATATYPES)}"
    checks = {
        "name": (tensor.name not in before, "must not come twice"),
        "datatype": (tensor.datatype == datatype, f"of {tensor.name} must be {datatype}"),
        "shape": (list(tensor.shape[:3]) in ONE, "must be [1]: a request asks one thing"),
        "parameters": (not tensor.parameters, "must be empty: shared memory is not served"),
        "contents": (not (raw and tensor.HasField("contents")), "must not be there beside raw contents"),
    }
    return next(((part, text) for part, (right, text) in checks.items() if not right), None)


def _element(tensor: Any) -> bytes | bool | None:
    """The only element, None where there is none or more."""
    fields = tensor.contents.ListFields()
    wanted = "bytes_contents" if tensor.datatype == "BYTES" else "bool_contents"
    if len(fields) != 1 or fields[0][0].name != wanted or len(fields[0][1]) != 1:
        return None
    return fields[0][1][0]  # type: ignore[no-any-return]


def _raw(tensor: Any, data: bytes) -> bytes | bool | None:
    """The same of raw contents."""
    if tensor.datatype == "BOOL":
        return bool(data[0]) if data in (b"\0", b"\1") else None
    return data[4:] if len(data) >= 4 and int.from_bytes(data[:4], "little") == len(data) - 4 else None


def _text(data: bytes, field: str, found: Findings) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        found.add(field, "must be UTF-8")
        return ""


# -- Parameters that come


def _json(data: bytes, found: Findings) -> dict[str, Any]:
    """Parameters that came as an object of JSON."""
    if len(data) > MAX_PARAMETER_BYTES:
        found.add(SAMPLING, f"must have at most {MAX_PARAMETER_BYTES} bytes")
        return {}
    try:
        count_json(data)
        values = json.loads(data)
    except InvalidRequest as error:
        found.add(SAMPLING, error.violations[0].description)
        return {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        found.add(SAMPLING, "must be an object of JSON")
        return {}
    return values


def _value(parameter: oip.InferParameter) -> Any:
    """What a parameter says, None for nothing."""
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None


def _flag(values: dict[str, Any], name: str, found: Findings) -> bool:
    """Take a parameter that is yes or no out of the others."""
    value = values.pop(name, False)
    if not isinstance(value, bool):
        found.add(f"parameters[{name}]", "must be a bool")
    return value is True


def _put(message: pb.GenerateRequest | pb.StreamGenerateRequest, name: str, value: Any) -> bool:
    """Set what a parameter is about; whether there is such a field for such a value."""
    try:
        if name in INTEGERS or name in NUMBERS:
            setattr(message.sampling, name, _number(value, int if name in INTEGERS else float))
        elif name == "stop":
            message.sampling.stop.extend(_stops(value))
        elif name in HINTS or name in SHAPES:
            setattr(message.routing if name in HINTS else message.sampling, name, value)
        else:
            return False
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _number(value: Any, kind: type[int] | type[float]) -> float:
    """A number, which clients of Triton may say as text. Raises ValueError, TypeError, OverflowError."""
    number = kind(value)
    if isinstance(value, bool) or (isinstance(value, float) and number != value and value == value):
        raise ValueError(value)
    return number


def _stops(value: Any) -> list[str]:
    """One or several; parameters can say one, JSON both. Raises TypeError."""
    if not isinstance(value, str | list):
        raise TypeError(value)
    return [value] if isinstance(value, str) else value


# -- What leaves


def text_message(parsed: ParsedRequest, text: str | None) -> oip.ModelInferResponse:
    """An answer or a part of one; None for a part without outputs. It is raw where the request was."""
    request = parsed.request
    message = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
    if text is not None:
        output = message.outputs.add(name=OUTPUT, datatype="BYTES", shape=[1])
        data = text.encode()
        if request.raw_input_contents:
            message.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
        else:
            output.contents.bytes_contents.append(data)
    return message


def whole_message(parsed: ParsedRequest, answer: pb.GenerateResponse) -> oip.ModelInferResponse:
    """The answer in one piece."""
    message = text_message(parsed, answer.text)
    tell_decision(message, answer.response_id, answer.decision)
    tell_end(message, answer.finish_reason, answer.usage)
    return message


def tell_decision(message: oip.ModelInferResponse, response_id: str, decision: pb.Decision) -> None:
    """Who answers, and why."""
    name, version = split_adapter(decision.adapter) or ("", "")
    message.model_version = version if name == message.model_name else ""
    decision_values: dict[str, str | float] = {
        "response_id": response_id,
        "adapter": decision.adapter,
        "confidence": decision.confidence,
        "reason": _word(pb.DecisionReason.Name(decision.reason), "DECISION_REASON_"),
        "experiment": decision.experiment,
        "arm": decision.arm,
    }
    for key, value in decision_values.items():
        if value or key not in ("experiment", "arm"):
            tell(message, key, value)


def tell_end(message: oip.ModelInferResponse, reason: Any, usage: pb.Usage) -> None:
    """Why it ended, and what it took."""
    tell(message, "finish_reason", _word(pb.FinishReason.Name(reason), "FINISH_REASON_"))
    tell(message, "prompt_tokens", usage.prompt_tokens)
    tell(message, "completion_tokens", usage.completion_tokens)


def tell(message: oip.ModelInferResponse, name: str, value: str | float | bool) -> None:
    """Set a parameter."""
    kinds = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}
    setattr(message.parameters[name], kinds[type(value)], value)


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def in_their_words(error: InvalidRequest) -> InvalidRequest:
    """The same error with the names of this protocol; one that says more than fields stays as it is."""
    if type(error) is not InvalidRequest:
        return error
    return InvalidRequest([FieldViolation(_theirs(v.field), v.description) for v in error.violations])


def _theirs(field: str) -> str:
    for ours, theirs in FIELDS.items():
        if field.startswith(ours):
            rest = field.removeprefix(ours)
            return theirs + rest if theirs else f"parameters[{rest}]"
    return field


def tensor(name: str) -> oip.ModelMetadataResponse.TensorMetadata:
    """An input or output, as metadata have it."""
    return oip.ModelMetadataResponse.TensorMetadata(name=name, datatype="BYTES", shape=[1])
