"""Routing: which adapter answers a request."""

from router.routing.base_model import BaseModel
from router.routing.classifier import Classifier, Scores

__all__ = ["BaseModel", "Classifier", "Scores"]
