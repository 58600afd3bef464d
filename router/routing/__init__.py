"""Routing: which adapter answers a request. What plugins write and use is imported from here, for good."""

from router.classifiers.contract import BaseModel, Classifier, Scores
from router.types import HIDDEN_STATES

__all__ = ["HIDDEN_STATES", "BaseModel", "Classifier", "Scores"]
