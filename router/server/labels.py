"""Whether an answer has the probabilities of its choices, and with which calibration; and their messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from router.engine.base import Ability
from router.errors import FailedPrecondition
from router.types import LabelProbabilities, LabelSettings, Request, SamplingParams
from router.v1 import inference_pb2 as pb


def labels_wanted(
    request: Request, params: SamplingParams, adapter: LabelSettings, abilities: Collection[Ability]
) -> LabelSettings | None:
    """How the probabilities of choices are calibrated; None where the answer has none.

    `adapter` is what its manifest says. Its calibration is for its own choices and its own prompt.
    Raises FailedPrecondition for an engine that cannot.
    """
    constraint = params.constraint
    wanted = adapter.always if request.want_labels is None else request.want_labels
    if not wanted or constraint is None or constraint.kind != "choices":
        return None
    if Ability.LABELS not in abilities:
        if request.want_labels:
            raise FailedPrecondition("the engine of this server gives no probabilities of choices")
        return None
    own = request.sampling.constraint is None and request.raw_prompt is None
    return adapter if own else LabelSettings()


def label_fields(labels: LabelProbabilities | None) -> dict[str, Any]:
    """Fields of GenerateResponse and Finished."""
    if labels is None:
        return {}
    values = [pb.Label(text=text, probability=probability) for text, probability in labels.values]
    return {"labels": values, "labels_calibrated": labels.calibrated}
