"""`lora-router ask`: stream one answer to the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import connect, flags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.client import Client, Event

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens to generate.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", metavar="T", help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the answer; repeatable.")
]
Unit = Annotated[str, typer.Option("--unit", metavar="ID", help="User or session, for experiments.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer: no decision, no usage.")]


def ask(
    prompt: connect.Words = None,
    adapter: connect.Adapter = "",
    domain: connect.Domain = "",
    task: connect.Task = "",
    system: connect.System = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    stop: Stop = None,
    unit: Unit = "",
    raw: connect.Raw = False,
    quiet: Quiet = False,
    server: flags.Server = "",
    timeout: flags.Timeout = 120.0,
    json: flags.Json = False,
) -> None:
    """Ask, and stream the answer.

    Who answers, and why, is told first, on stderr. Ctrl-C cancels the request on the server,
    too. The prompt is never cut: one that is too long is refused.

    \b
    Examples:
      lora-router ask "Translate to French: high-level client library"
      lora-router ask --adapter medical@1.0.0 - < question.txt
    """
    from router.cli.connect import connected

    said: dict[str, Any] = {
        "adapter": adapter,
        "domain": domain,
        "task": task,
        "system": system,
        "unit": unit,
    }
    said |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop, "raw": raw}
    options: Any = {name: value for name, value in said.items() if _is_said(value)}
    text = connect.read_prompt(prompt)
    with connected(server, timeout) as client:
        if json:
            _print_whole(client, text, options)
        else:
            _print_stream(client.stream(text, **options), quiet)


def _is_said(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [])


def _print_whole(client: Client, text: str, options: Any) -> None:
    from router.cli.output import print_json

    print_json(client.generate(text, **options))


def _print_stream(events: Iterable[Event], quiet: bool) -> None:
    from router.cli.connect import decision_line, usage_line
    from router.cli.output import clean
    from router.client import Delta, Started

    on_terminal = sys.stdout.isatty()
    last, usage = "\n", ""
    try:
        for event in events:
            if isinstance(event, Started):
                _note(decision_line(event.decision), quiet)
            elif isinstance(event, Delta):
                last = event.text or last
                print(clean(event.text) if on_terminal else event.text, end="", flush=True)
            else:
                usage = usage_line(event.usage, event.reason.value)
    finally:  # an answer that breaks off ends its line, too
        print(end="" if last.endswith("\n") else "\n", flush=True)
    _note(usage, quiet or not usage)


def _note(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
