"""The prompt of `ask` and `route`: words, or stdin."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from router.cli.errors import MISUSED, CliError

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="The request; - reads it from stdin.", show_default=False),
]
Adapter = Annotated[
    str, typer.Option("--adapter", "-a", metavar="NAME[@VERSION]", help="Pin the adapter; base: none.")
]
Domain = Annotated[str, typer.Option("--domain", metavar="DOMAIN", help="Only adapters of this domain.")]
Task = Annotated[str, typer.Option("--task", metavar="TASK", help="Only adapters for this task.")]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="Replace the adapter's own system text.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is: no template.")]


def read_prompt(words: list[str] | None) -> str:
    """Whole and uncut; bytes that are no UTF-8 are refused."""
    if words and words != ["-"]:
        return " ".join(words)
    if not words and sys.stdin.isatty():
        raise CliError('say what to ask: lora-router ask "...", or - to read it from stdin', MISUSED)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CliError(
            f"stdin is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}", MISUSED
        ) from None
    if not text.strip():
        raise CliError("stdin is empty: nothing to ask", MISUSED)
    return text
