"""Write each routing decision as a line of JSON: `lora-router serve --set decision_log.path=today.jsonl`."""

import json
from pathlib import Path

from pydantic import BaseModel

from router import hookimpl
from router.hookspecs import DecisionRecord


class Settings(BaseModel):
    path: Path = Path("decisions.jsonl")  # relative to the folder that the server runs in
    text: bool = False  # with what users wrote


@hookimpl
def register_settings(register):
    register(Settings)


@hookimpl
def on_decision(record: DecisionRecord, settings: Settings) -> None:
    values = record.to_json()
    if not settings.text:
        del values["text"]
    with settings.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
