"""`lora-router experiments record`: outcomes, one from the command line or many from a file."""

from __future__ import annotations

import json as jsons
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from hashlib import sha256
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import FAILED, MISUSED, CliError
from router.extensions.experiments.cli.create import experiments_at

if TYPE_CHECKING:
    from router.extensions.experiments.client import Experiments, Outcome

Metric = Annotated[
    str,
    typer.Argument(
        metavar="METRIC",
        help="The metric; - reads JSON lines from stdin.",
        show_default=False,
    ),
]
Value = Annotated[float | None, typer.Argument(metavar="VALUE", help="Its value; 0 or 1 for a proportion.")]
Response = Annotated[str, typer.Option("--response", metavar="ID", help="Of this answer: its response_id.")]
OfExperiment = Annotated[
    str,
    typer.Option("--experiment", metavar="NAME", help="Of a unit in this experiment; with --unit."),
]
Unit = Annotated[str, typer.Option("--unit", metavar="ID", help="The unit, as in the request.")]
Time = Annotated[
    float | None, typer.Option("--time", metavar="SECONDS", help="When it happened, unix time; default: now.")
]
Key = Annotated[
    str, typer.Option("--key", metavar="KEY", help="The same key is counted once: sending again is safe.")
]
SHOWN = 20
"""Refused outcomes that are shown; the rest is counted."""


def record(
    metric: Metric = "",
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
    is a JSON object with metric, value, and response_id or experiment and unit (or unit_hash), and perhaps
    time (unix seconds) and key. All of it is checked before anything is sent. Sending it again is safe: what
    has no key gets one made of what it says.

    \b
    Examples:
      lora-router experiments record thumbs_up 1 --response 0a1b2c --key vote-4711
      lora-router experiments record - < outcomes.jsonl
    """
    from router.extensions.experiments.client import Outcome

    if metric == "-":
        done = _from_lines(sys.stdin, server, timeout)
    elif not metric or value is None:
        what = f"what is the value of {metric}?" if metric else "what shall be recorded?"
        raise CliError(f"{what} record METRIC VALUE, or - for JSON lines", MISUSED)
    else:
        done = _one(Outcome(metric, value, response, experiment, unit, at, key), server, timeout)
    counted, refused = done
    _print(counted, json)
    for line in refused[:-1]:
        print(f"lora-router: {line}", file=sys.stderr)
    if refused:
        raise CliError(refused[-1], FAILED)


def _one(outcome: Outcome, server: str, timeout: float) -> tuple[Counter[str], list[str]]:
    try:
        _check(outcome)
    except ValueError as error:
        raise CliError(f"outcome: {error}", MISUSED) from None
    with experiments_at(server, timeout) as experiments:
        return Counter([str(experiments.record_outcome(outcome))]), []


def _sent(
    experiments: Experiments, outcomes: Iterable[Outcome], place: Callable[[int], str]
) -> tuple[Counter[str], list[str]]:
    """What became of them, and a line for each that was refused; the last of many counts the rest."""
    counted: Counter[str] = Counter()
    refused: list[str] = []
    for number, found in enumerate(experiments.record_outcomes(outcomes)):
        counted[str(found.status or "refused")] += 1
        if found.status is None and len(refused) < SHOWN:
            refused.append(f"{place(number)}: {found.error}")
    if (left := counted["refused"] - len(refused)) > 0:
        refused.append(f"and {left:,} more refused")
    return +counted, refused


def _print(counted: Counter[str], json: bool) -> None:
    from router.cli.output import print_json

    if json:
        print_json(counted)
    else:
        print(", ".join(f"{count:,} {status}" for status, count in counted.items()) or "nothing to record")


def _from_lines(lines: Iterable[str], server: str, timeout: float) -> tuple[Counter[str], list[str]]:
    """JSON lines, kept in a file until all are checked: stdin cannot be read twice."""
    from router.extensions.experiments.client import Outcome

    with TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as kept:
        numbers, before = array("Q"), Counter[bytes]()
        wrong: list[str] = []
        for number, line in _numbered(lines):
            try:
                outcome = _keyed(_outcome(line), before)
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
                continue
            numbers.append(number)
            print(jsons.dumps(asdict(outcome)), file=kept)
        if wrong:
            raise _wrong(wrong)
        kept.seek(0)
        with experiments_at(server, timeout) as experiments:
            outcomes = (Outcome(**jsons.loads(line)) for line in kept)
            return _sent(experiments, outcomes, lambda at: f"line {numbers[at]}")


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines that hold something."""
    try:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise CliError(f"stdin is not UTF-8: {error}", MISUSED) from None


def _wrong(lines: list[str]) -> CliError:
    for line in lines[:SHOWN]:
        print(f"lora-router: {line}", file=sys.stderr)
    left = f", {len(lines) - SHOWN:,} of them not shown" if len(lines) > SHOWN else ""
    faults = "1 fault" if len(lines) == 1 else f"{len(lines):,} faults"
    return CliError(f"{faults}{left}: nothing was sent", MISUSED)


def _keyed(outcome: Outcome, before: Counter[bytes]) -> Outcome:
    """The outcome with a key: a hash of all fields but the value, and how many earlier lines have that hash.

    So a line that is sent twice counts once, and two equal lines of one input count twice.
    """
    if outcome.key:
        return outcome
    parts = (outcome.response_id, outcome.experiment, outcome.unit, outcome.unit_hash, outcome.metric)
    text = "\x1f".join((*parts, repr(outcome.time)))
    print_ = sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
    before[print_] += 1
    return replace(outcome, key=f"line-{print_.hex()}-{before[print_] - 1}")


def _outcome(line: str) -> Outcome:
    """Raises ValueError saying what is wrong with the line."""
    from router.extensions.experiments.client import Outcome

    try:
        values: Any = jsons.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    names = [field.name for field in fields(Outcome)]
    if not isinstance(values, dict) or not {"metric", "value"} <= set(values) <= set(names):
        raise ValueError(f"must be an object with metric, value and of {', '.join(names)}")
    for name, value in values.items():
        if name == "value" or (name == "time" and value is not None):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")
        elif name != "time" and not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
    made = Outcome(**values)
    _check(made)
    return made


def _check(outcome: Outcome) -> None:
    from router.extensions.experiments.calls import outcome_message

    try:
        outcome_message(outcome)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
