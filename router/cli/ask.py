"""`lora-router ask`: stream one answer to the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import connect, flags
from router.cli.connect import connected, decision_line, usage_line
from router.cli.output import clean, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from router.client import Client, Event, Finished

DOUBT = 0.6  # the likeliest choice is in doubt where it is less likely
MOST_SHOWN = 5  # choices

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens to generate.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", metavar="T", help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the answer; repeatable.")
]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="JSON|@FILE", help="The answer is JSON, valid under this schema."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", metavar="REGEX", help="It matches this from end to end.")
]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", metavar="TEXT", help="It is one of these; repeatable.")
]
Grammar = Annotated[
    str | None, typer.Option("--grammar", metavar="LARK|@FILE", help="It is of this Lark grammar's language.")
]
Quote = Annotated[
    str | None,
    typer.Option("--quote", metavar="TEXT|@FILE", help="It is a span of this text, word for word."),
]
Unit = Annotated[str, typer.Option("--unit", metavar="ID", help="User or session, for experiments.")]
Labels = Annotated[
    bool | None,
    typer.Option(
        "--labels/--no-labels",
        help="Show how likely each choice is. By default an adapter that has them shows doubt only.",
    ),
]


def ask(
    prompt: connect.Words = None,
    adapter: connect.Adapter = "",
    mix: connect.Mix = "",
    system: connect.System = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    stop: Stop = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    grammar: Grammar = None,
    quote: Quote = None,
    unit: Unit = "",
    raw: connect.Raw = False,
    labels: Labels = None,
    server: flags.Server = "",
    timeout: flags.Timeout = 120.0,
    json: flags.Json = False,
) -> None:
    """Send a prompt, and stream the answer.

    The answer goes to stdout. The decision goes to stderr before it, the usage after it. Ctrl-C cancels the
    request on the server, too. The prompt is never cut: one that is too long is refused.

    \b
    Examples:
      lora-router ask "Translate to French: high-level client library"
      lora-router ask --adapter medical@1.0.0 - < question.txt
      lora-router ask --mix medical=0.7,legal=0.3 "May a doctor tell an employer of a diagnosis?"
      lora-router ask "Is the sky blue?" --choice yes --choice no
    """
    said: dict[str, Any] = {
        "adapter": adapter,
        "mixture": connect.read_mixture(mix),
        "system": system,
        "unit": unit,
    }
    said |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop, "raw": raw}
    said |= {"choices": choice}
    options: Any = {name: value for name, value in said.items() if _is_said(value)}
    texts = {
        "json_schema": _read(json_schema),
        "regex": regex,
        "grammar": _read(grammar),
        "quote": _read(quote),
    }
    # An empty one is sent, too: the server refuses it, where a free answer would surprise.
    options |= {name: value for name, value in texts.items() if value is not None}
    if labels is not None:
        options["want_labels"] = labels
    _check_one_constraint(options)
    text = connect.read_prompt(prompt)
    with connected(server, timeout) as client:
        if json:
            _print_whole(client, text, options)
        else:
            _print_stream(client.stream(text, **options), bool(labels))


def _read(value: str | None) -> str | None:
    """A value, or the file that one with @ names."""
    from router.cli.command import MISUSED, CliError

    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {value[1:]}: {error}", code=MISUSED) from error


def _check_one_constraint(options: Mapping[str, Any]) -> None:
    from router.cli.command import MISUSED, CliError

    flags = {
        "json_schema": "--json-schema",
        "regex": "--regex",
        "choices": "--choice",
        "grammar": "--grammar",
        "quote": "--quote",
    }
    given = [flag for name, flag in flags.items() if name in options]
    if len(given) > 1:
        raise CliError(f"an answer has one constraint: leave out {given[0]} or {given[1]}", code=MISUSED)


def _is_said(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _print_whole(client: Client, text: str, options: Any) -> None:

    print_json(client.generate(text, **options))


def _print_stream(events: Iterable[Event], labels: bool) -> None:
    from router.client import Delta, Started

    on_terminal = sys.stdout.isatty()
    last, usage, shown = "\n", "", ""
    try:
        for event in events:
            if isinstance(event, Started):
                _note(decision_line(event.decision))
            elif isinstance(event, Delta):
                last = event.text or last
                print(clean(event.text) if on_terminal else event.text, end="", flush=True)
            else:
                usage = usage_line(event.usage, event.reason.value)
                shown = labels_text(event, wanted=labels)
    finally:  # an answer that breaks off ends its line, too
        print(end="" if last.endswith("\n") else "\n", flush=True)
    if labels and shown:
        print(shown)
    else:
        _note(shown)
    _note(usage)


def labels_text(end: Finished, *, wanted: bool) -> str:
    """The likeliest choices with their probabilities; unless `wanted`, only where the first is in doubt."""
    if not end.labels or not (wanted or end.labels[0].probability < DOUBT):
        return ""
    lines = [f"{label.probability:6.1%}  {label.text}" for label in end.labels[:MOST_SHOWN]]
    if left := len(end.labels) - len(lines):
        rest = max(0.0, 1 - sum(label.probability for label in end.labels[:MOST_SHOWN]))
        lines.append(f"{rest:6.1%}  {left} others")
    head = "" if end.labels_calibrated else "not calibrated:\n"
    return head + "\n".join(lines)


def _note(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)
