"""Bars for what takes a while, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total (same unit)."""


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar on standard error for each thing that is reported; nothing where that is no terminal, or without
    rich."""
    if find_spec("rich") is None or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars = Bars(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bars.start()  # not before: another program may draw a bar of its own first
            shown = "".join(letter for letter in what if letter.isprintable())
            tasks[what] = bars.add_task(escape(shown), total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        bars.stop()
