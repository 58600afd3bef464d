"""The calibration file: the threshold that labelled requests proved, as JSON for people to read.

`lora-router route calibrate` writes it. Without one the threshold is that of the settings.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router.errors import ConfigError
from router.reread import read_file

FILE_NAME = "calibration.json"
FORMAT = 2
MOST_BYTES = 4 << 20


class CalibrationError(ConfigError):
    """The rows or the file cannot be used; the message says what to do."""


class Calibration(BaseModel):
    """`threshold` is the confidence that routes. At most `target` of what is routed goes wrong and at most
    `strange_target` of requests for no adapter are routed (None: nothing is promised of these), each with a
    chance of 1 - `delta`, for requests like those of the `report`. `adapters` are those that the requests
    were for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    created: str
    threshold: float = Field(ge=0, le=1)
    target: float = Field(gt=0, lt=1)
    strange_target: float | None = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    adapters: tuple[str, ...]
    report: dict[str, Any] = Field(default_factory=dict)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_calibration(path: Path) -> Calibration:
    """Raises CalibrationError naming the file and what is wrong with it."""
    try:
        document = json.loads(read_file(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise CalibrationError(
            f"{path}: {error.strerror}; `lora-router route calibrate` writes one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not JSON: {error}") from None
    if not isinstance(document, dict) or "format" not in document:
        raise _damaged(path, "no calibration file")
    if document["format"] != FORMAT:
        raise CalibrationError(
            f"{path} has format {document['format']!r}, this version reads {FORMAT}: run `lora-router route "
            "calibrate` again"
        )
    try:
        return Calibration.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _damaged(path: Path, what: str) -> CalibrationError:
    return CalibrationError(f"{path} is damaged: {what}; run `lora-router route calibrate` again")
