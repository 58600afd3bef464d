"""Routing: which adapter answers a request."""

from router.classifiers.contract import BaseModel, Classifier, Scores

__all__ = ["BaseModel", "Classifier", "Scores"]
