"""Greedy answers from the engine that serves: all requests of an arm in one continuous batch."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from router.config import Settings
from router.engine.base import BaseInfo, Finished, Job, with_grammar
from router.engine.loader import LoadedModel
from router.engine.torch_engine import TorchEngine
from router.extensions.training.base import LoadedBase
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import SamplingParams, Usage

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """Text without outer white space, and what it took; its end token is counted."""

    text: str
    usage: Usage


class AnsweringEngine:
    """A base in the serving engine, with the settings a server would have here."""

    def __init__(self, base: LoadedBase, quantize: str = "") -> None:
        """Starts the engine; `base` stays usable and shares the tensors that the engine does not pack.

        `quantize`: as the setting; empty: as that says here.
        """
        said: dict[str, Any] = {"quantize": quantize} if quantize else {}
        self._settings = Settings(device=str(base.device), **said)
        self._engine = TorchEngine(
            self._settings, LoadedModel(sharing_copy(base.model), base.tokenizer, base.name)
        )
        self._engine.start()
        self._runner = asyncio.Runner()

    @property
    def info(self) -> BaseInfo:
        """The base as the engine runs it."""
        return self._engine.info

    def close(self) -> None:
        """Stop the engine."""
        self._runner.close()
        self._engine.close()

    def load(self, folder: Path) -> str:
        """Bring an adapter into the engine; returns its digest. Raises AdapterRejected with all findings."""
        artifact, _ = read_artifact(
            folder.absolute(), FolderRules(self.info, max_rank=self._settings.max_rank)
        )
        self._runner.run(self._engine.load(artifact))
        return artifact.digest

    def unload(self, digest: str) -> None:
        """Drop an adapter."""
        self._runner.run(self._engine.unload(digest))

    def answers(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParams,
        adapter: str | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> list[EngineAnswer]:
        """Answers in order; `done` is called after each. Raises PromptTooLong, EngineFailed."""
        return self._runner.run(self._together(prompts, params, adapter, done))

    def alone(self, prompt: Tokens, params: SamplingParams, adapter: str | None = None) -> EngineAnswer:
        """One answer with nothing beside it."""
        return self._runner.run(self._one(prompt, params, adapter))

    async def _together(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParams,
        adapter: str | None,
        done: Callable[[], None],
    ) -> list[EngineAnswer]:
        places = asyncio.Semaphore(self._settings.max_running + min(32, self._settings.max_queue))

        async def answer(prompt: Tokens) -> EngineAnswer:
            async with places:
                made = await self._one(prompt, params, adapter)
            done()
            return made

        # The first one alone: what all prompts begin with is then in the prefix cache for the others.
        first = [await answer(prompt) for prompt in prompts[:1]]
        return first + await asyncio.gather(*(answer(prompt) for prompt in prompts[1:]))

    async def _one(self, prompt: Tokens, params: SamplingParams, adapter: str | None) -> EngineAnswer:
        texts: list[str] = []
        job = await with_grammar(self._engine, Job("evaluation", prompt, params, adapter))
        async for event in self._engine.submit(job):
            if isinstance(event, Finished):
                return EngineAnswer("".join(texts).strip(), event.usage)
            texts.append(event.text)
        raise RuntimeError("a generation ended without Finished")


def sharing_copy(model: Any) -> Any:
    """The same modules over the same weights: the engine takes its model apart, the other one stays whole."""
    shared = {id(weight): nn.Parameter(weight.detach(), False) for weight in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](shared))


@dataclass(frozen=True, slots=True)
class Answerer:
    """One side of a comparison: answers as the base (`adapter` None) or as a loaded adapter (its digest)."""

    engine: AnsweringEngine
    params: SamplingParams
    adapter: str | None = None

    def answers(self, prompts: Sequence[Tokens], title: str) -> list[EngineAnswer]:
        """All prompts in one batch, with a bar on a terminal."""
        with progress_bar(title, len(prompts)) as done:
            return self.engine.answers(prompts, self.params, self.adapter, done)

    def alone(self, prompt: Tokens) -> EngineAnswer:
        """One answer with nothing beside it."""
        return self.engine.alone(prompt, self.params, self.adapter)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, gone at the end; only where stderr is a terminal. Call what it gives."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    )
    with shown:
        task = shown.add_task(title, total=total)
        yield lambda: shown.advance(task)
