"""One side of a comparison in the engine: the base or the adapter, with the recipe's limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from router.evaluation.answering import Answer, Answering, Tokens
from router.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Speaker:
    """Answers as the base (`adapter` None) or as a loaded adapter (its digest)."""

    answering: Answering
    params: SamplingParams
    adapter: str | None = None

    def answers(self, prompts: Sequence[Tokens], title: str) -> list[Answer]:
        """All prompts in one batch, with a bar on a terminal."""
        with bar(title, len(prompts)) as done:
            return self.answering.answers(prompts, self.params, self.adapter, done)

    def alone(self, prompt: Tokens) -> Answer:
        """One answer with nothing beside it."""
        return self.answering.alone(prompt, self.params, self.adapter)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, gone at the end; only where stderr is a terminal. Call what it gives."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(
        *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
    )
    with shown:
        task = shown.add_task(title, total=total)
        yield lambda: shown.advance(task)
