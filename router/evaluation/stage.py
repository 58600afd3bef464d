"""Bases, each loaded once for all adapters that are evaluated on it."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from router.evaluation.answering import Answering
from router.training.base import LoadedBase, load_base


@dataclass(frozen=True, slots=True)
class Stage:
    """A base twice: plain, for losses and ranking, and in the serving engine, for answers."""

    base: LoadedBase
    answering: Answering


class Stages:
    """Keeps the last base; another one takes its place."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._model = ""
        self._stage: Stage | None = None

    def on(self, model: str) -> Stage:
        """The base that a recipe names. Raises ConfigError if it cannot be had."""
        if self._stage is None or self._model != model:
            self._close()
            base = load_base(model, self._device)
            self._stage, self._model = Stage(base, Answering(base)), model
        return self._stage

    def _close(self) -> None:
        if self._stage is not None:
            self._stage.answering.close()
            self._stage = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
