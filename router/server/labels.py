"""Whether an answer has the probabilities of its choices, and with which calibration; priors; messages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
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


def with_fitting_prior(
    params: SamplingParams, request: Request, mixed: bool, abilities: Collection[Ability]
) -> SamplingParams:
    """`params` without the prior of an adapter's choices where it was not fitted for the prompt or the
    weights, or the engine cannot follow it."""
    constraint = params.constraint
    if constraint is None or not constraint.prior:
        return params
    if request.raw_prompt is None and not mixed and Ability.PRIORS in abilities:
        return params
    return replace(params, constraint=constraint.without_prior())


def label_fields(labels: LabelProbabilities | None) -> dict[str, Any]:
    """Fields of GenerateResponse and Finished."""
    if labels is None:
        return {}
    values = [pb.Label(text=text, probability=probability) for text, probability in labels.values]
    return {"labels": values, "labels_calibrated": labels.calibrated}
