"""A request of the playground as code to copy: curl and Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

from router.names import AUTO, model_name
from router.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a client reaches this server. `grpc` is HOST:PORT or unix:PATH."""

    http: str
    grpc: str
    tls: bool
    token: bool  # a client needs one


def code_of(request: pb.StreamGenerateRequest, at: Addresses) -> list[tuple[str, str]]:
    """Titles and texts."""
    said = MessageToDict(request, preserving_proto_field_name=True)
    return [("curl", curl(said, at)), ("Python", python(said, at))]


def curl(said: Mapping[str, Any], at: Addresses) -> str:
    """OpenAI's API, by curl."""
    sampling, routing = dict(said.get("sampling", {})), dict(said.get("routing", {}))
    body: dict[str, Any] = {
        "model": model_name(routing["adapter"]) if "adapter" in routing else AUTO,
        "stream": True,
        "messages": [{"role": role, "content": text} for role, text in turns_of(said)],
    }
    if "json_schema" in sampling:
        form = {"name": "answer", "schema": schema_of(sampling.pop("json_schema"))}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if "choices" in sampling:
        body["choice"] = sampling.pop("choices")["values"]
    if "seed" in sampling:
        sampling["seed"] = int(sampling["seed"])
    body |= sampling
    if "unit" in routing:
        body["user"] = routing["unit"]
    more: dict[str, Any] = {"explain": True} if routing.get("explain") else {}
    if "continuity" in routing:
        more["continuity"] = continuity_of(routing)
    if more:
        body["routing"] = more
    scheme = "https" if at.tls else "http"
    lines = ["curl -sN" + (" --cacert ca.pem" if at.tls else ""), "-H 'Content-Type: application/json'"]
    lines += ['-H "Authorization: Bearer $TOKEN"'] if at.token else []
    lines.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False, indent=2))}")
    lines.append(shlex.quote(f"{scheme}://{at.http}/v1/chat/completions"))
    return " \\\n  ".join(lines) + "\n"


def python(said: Mapping[str, Any], at: Addresses) -> str:
    """This project's client."""
    options: dict[str, Any] = {}
    routing, sampling = said.get("routing", {}), said.get("sampling", {})
    if "adapter" in routing:
        options["adapter"] = model_name(routing["adapter"])
    if "unit" in routing:
        options["unit"] = routing["unit"]
    if routing.get("explain"):
        options["explain"] = True
    if "continuity" in routing:
        options["continuity"] = continuity_of(routing)
    options |= sampling
    if "seed" in sampling:
        options["seed"] = int(sampling["seed"])
    if "choices" in sampling:
        options["choices"] = sampling["choices"]["values"]
    turns = "".join(f"    Turn({role!r}, {text!r}),\n" for role, text in turns_of(said))
    target = repr(at.grpc) + (', tls_ca="ca.pem"' if at.tls else "")
    target += ', token=os.environ["TOKEN"]' if at.token else ""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return (
        ("import os\n\n" if at.token else "")
        + "from router.client import Client, Delta, Turn\n\n"
        + f"turns = [\n{turns}]\n"
        + f"with Client({target}) as client:\n"
        + f"    for event in client.stream(turns{given}):\n"
        + "        if isinstance(event, Delta):\n"
        + '            print(event.text, end="", flush=True)\n'
    )


def turns_of(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Roles and texts, of one text or of a chat."""
    asked = said.get("input", {})
    if "chat" not in asked:
        return [("user", asked.get("text", ""))]
    return [
        (one["role"].removeprefix("ROLE_").lower(), one.get("text", "")) for one in asked["chat"]["messages"]
    ]


def schema_of(text: str) -> Any:
    """A JSON schema; what is none stays text, and the server says what is wrong with it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def continuity_of(routing: Mapping[str, Any]) -> str:
    """As Python and HTTP name it."""
    return str(routing["continuity"]).removeprefix("CONTINUITY_").lower()
