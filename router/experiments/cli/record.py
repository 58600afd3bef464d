"""`lora-router experiments record`: outcomes, one from the command line or many from a file."""

from __future__ import annotations

import json as jsons
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.client import Outcome

Metric = Annotated[
    str, typer.Argument(metavar="METRIC", help="The metric; - reads JSON lines from stdin instead.")
]
Value = Annotated[float | None, typer.Argument(metavar="VALUE", help="Its value; 0 or 1 for a proportion.")]
Response = Annotated[str, typer.Option("--response", metavar="ID", help="Of this answer: its response_id.")]
OfExperiment = Annotated[
    str, typer.Option("--experiment", metavar="NAME", help="Of a unit in this experiment; with --unit.")
]
Unit = Annotated[str, typer.Option("--unit", metavar="ID", help="The unit, as in the request.")]
Time = Annotated[
    float | None, typer.Option("--time", metavar="SECONDS", help="When it happened, unix time; default: now.")
]
Key = Annotated[
    str, typer.Option("--key", metavar="KEY", help="The same key is counted once: sending again is safe.")
]


def record(
    metric: Metric,
    value: Value = None,
    response: Response = "",
    experiment: OfExperiment = "",
    unit: Unit = "",
    at: Time = None,
    key: Key = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 60.0,
    json: flags.Json = False,
) -> None:
    """Record outcomes.

    An outcome is of an answer, by its response id, or of a unit in an experiment. With - each line of stdin
    is a JSON object with metric, value, and response_id or experiment and unit, and perhaps time and key.

    \b
    Examples:
      lora-router experiments record thumbs_up 1 --response 0a1b2c --key vote-4711
      lora-router experiments record - < outcomes.jsonl
    """
    from router.cli.connect import connected
    from router.cli.errors import FAILED, MISUSED, CliError
    from router.client import Outcome

    if metric == "-":
        one = None
    elif value is None:
        raise CliError(f"what is the value of {metric}? record METRIC VALUE, or - for JSON lines", MISUSED)
    else:
        one = Outcome(metric, value, response, experiment, unit, at, key)
    refused: list[str] = []
    counted: Counter[str] = Counter()
    with connected(server, timeout) as client:
        if one is not None:
            _checked(one, "outcome")
            counted[str(client.experiments.record_outcome(one))] += 1
        else:
            sent = client.experiments.record_outcomes(
                list(_outcomes(sys.stdin))
            )  # checked before any is sent
            for number, found in enumerate(sent, 1):
                counted[str(found.status or "refused")] += 1
                refused += [f"line {number}: {found.error}"] if found.status is None else []
    _print(counted, json)
    if refused:
        more = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise CliError(f"{refused[0]}{more}", FAILED)


def _print(counted: Counter[str], json: bool) -> None:
    from router.cli.output import print_json

    if json:
        print_json(counted)
    else:
        print(", ".join(f"{count:,} {status}" for status, count in counted.items()) or "nothing to record")


def _outcomes(lines: Iterable[str]) -> Iterator[Outcome]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _outcome(line, f"line {number}")


def _outcome(line: str, where: str) -> Outcome:
    from router.cli.errors import MISUSED, CliError
    from router.client import Outcome

    try:
        values: Any = jsons.loads(line)
    except ValueError as error:
        raise CliError(f"{where}: not JSON: {error}", MISUSED) from None
    names = [field.name for field in fields(Outcome)]
    if not isinstance(values, dict) or not {"metric", "value"} <= set(values) <= set(names):
        raise CliError(f"{where}: must be an object with metric, value and of {', '.join(names)}", MISUSED)
    if isinstance(values["value"], bool) or not isinstance(values["value"], int | float):
        raise CliError(f"{where}: value must be a number, not {values['value']!r}", MISUSED)
    made = Outcome(**values)
    _checked(made, where)
    return made


def _checked(outcome: Outcome, where: str) -> None:
    from router.cli.errors import MISUSED, CliError
    from router.experiments.wire.outcomes import outcome_message

    try:
        outcome_message(outcome)
    except (TypeError, ValueError) as error:
        raise CliError(f"{where}: {error}", MISUSED) from None
