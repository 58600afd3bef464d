"""The one class a classifier plugin implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from router.routing.base_model import BaseModel
from router.types import AdapterProfile, Request

ScoreKind = Literal["probability", "logit", "similarity"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores for labels: adapter names, or domains or tasks that stand for the adapters with them.

    `probability` values lie in [0, 1]; `logit` values go through a softmax; `similarity` values
    lie in [-1, 1].
    """

    values: Mapping[str, float]
    kind: ScoreKind = "probability"
    evidence: str = ""


class Classifier:
    """Base class. `classify_batch` is the only method a plugin must write."""

    name: str = ""
    version: str = "0"

    def bind(self, base: BaseModel) -> None:
        """Called once before the warm-up. Who defines it is asked only where there is a base."""

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        """Called off the request path whenever the set of adapters changes."""

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        """One entry for each request; None declines."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Called once before the first request."""

    def fingerprint(self) -> str:
        """What a calibration is bound to."""
        return f"{self.name}/{self.version}"
