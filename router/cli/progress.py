"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """The items; a bar shows how far they are."""
    from rich.progress import track as bar

    from router.cli.output import console, is_plain

    if is_plain(sys.stderr):
        yield from items
    else:
        yield from bar(items, title, console=console(stderr=True), transient=True)
