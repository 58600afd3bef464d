"""Routing: which adapter answers a request."""

from router.routing.classifier import Classifier, Scores

__all__ = ["Classifier", "Scores"]
