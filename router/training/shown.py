"""What a person sees of a training run: a bar on a terminal, one line per evaluation elsewhere too."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from router.training.trainer import Progress as Done


class Shown:
    """A progress display on stderr."""

    def __init__(self, name: str, steps: int) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(name, total=steps)

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: Done) -> None:
        """Show one more step."""
        last = done.history[-1]
        self._bar.update(self._task, completed=done.step, description=f"loss {last['loss']:.3f}")
        if "valid_loss" in last:
            kept = "kept" if done.best_step == done.step else f"best was step {done.best_step}"
            self.say(
                f"step {done.step}: train {last['loss']:.3f}, validation {last['valid_loss']:.3f} nats, "
                f"{last['valid_exact']:.1%} exact ({kept})"
            )

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
