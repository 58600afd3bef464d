"""The calibration file: JSON for people to read, checked when it is read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from router.calibration.model import (
    Axes,
    Binding,
    Calibration,
    CalibrationError,
    Stage,
    TemperatureScaler,
    profile_digest,
)
from router.reread import read_file
from router.types import AdapterProfile

FORMAT = 1
FILE_NAME = "calibration.json"
MOST_BYTES = 4 << 20


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Whole or not at all."""
    text = json.dumps({"format": FORMAT, **asdict(calibration)}, indent=2, ensure_ascii=False) + "\n"
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
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
        found = _calibration(document)
        _check(path, found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return found


def _damaged(path: Path, what: str) -> CalibrationError:
    return CalibrationError(f"{path} is damaged: {what}; run `lora-router route calibrate` again")


def _calibration(document: Mapping[str, Any]) -> Calibration:
    known = {f.name for f in fields(Calibration)} - {"profiles", "learned"}
    values = {name: document[name] for name in known}
    values["profiles"] = tuple(_profile(one) for one in document.get("profiles", ()))
    values["learned"] = {name: _texts(name, texts) for name, texts in document.get("learned", {}).items()}
    values["scalers"] = {name: TemperatureScaler(**one) for name, one in document["scalers"].items()}
    values["stages"] = tuple(Stage(**one) for one in document["stages"])
    values["left_out"] = tuple(document["left_out"])
    values["axes"] = Axes(**document["axes"])
    values["binding"] = Binding(**document["binding"])
    return Calibration(**values)


def _texts(name: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"what adapter {name!r} learned is no list of texts")
    return tuple(texts)


def _profile(entry: Mapping[str, Any]) -> AdapterProfile:
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in entry.items()}
    profile = AdapterProfile(**values)
    known = asdict(profile)
    if not isinstance(known.pop("needs_passage"), bool):
        raise ValueError(f"whether adapter {profile.name!r} needs a passage is neither true nor false")
    for value in known.values():
        if not all(isinstance(text, str) for text in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"what is known of adapter {profile.name!r} is no text")
    return profile


def _check(path: Path, of: Calibration) -> None:
    """Every number is one, and the stages fit the classifiers."""
    numbers = [
        *(n for s in of.scalers.values() for n in (s.temperature, s.none)),
        *(n for s in of.stages for n in (s.none, s.novelty_bias, s.stop)),
        *(
            n
            for s in of.stages
            for m in (s.weights, s.task_weights, s.bias, s.declined, s.own, s.novelty, *_pairs(s))
            for n in m.values()
        ),
        *(of.threshold, of.novelty_limit, of.target, of.delta, of.ood_target, of.axes.near),
    ]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise _damaged(path, "a number is missing or not finite")
    if any(s.temperature <= 0 for s in of.scalers.values()):
        raise _damaged(path, "a temperature is not above 0")
    if list(of.binding.classifiers) != list(of.scalers) or len(of.stages) != len(of.scalers) or not of.stages:
        raise _damaged(path, "scalers, stages and classifiers do not fit together")
    if of.profiles and {p.name: profile_digest(p) for p in of.profiles} != dict(of.binding.adapters):
        raise _damaged(path, "what it knows of the adapters is not what it is bound to")
    if not all(0 <= n <= 1 for n in (of.threshold, of.novelty_limit, of.target, of.delta)):
        raise _damaged(path, "a threshold lies outside 0 to 1")


def _pairs(stage: Stage) -> Iterator[Mapping[str, float]]:
    for effects in stage.pairs.values():
        yield from effects.values()
