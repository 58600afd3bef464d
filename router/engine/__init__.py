"""The engine: one base model, many adapters, one batch. What plugins use of it is imported from here."""

from router.engine.text_engine import TextEngine
from router.types import SamplingParams

__all__ = ["SamplingParams", "TextEngine"]
