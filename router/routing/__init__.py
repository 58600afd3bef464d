"""Routing: which adapter answers a request. What plugins write and use is imported from here, for good."""

from router.classifiers.contract import HIDDEN_STATES, BaseModel, Classifier, Scores

__all__ = ["HIDDEN_STATES", "BaseModel", "Classifier", "Scores"]
