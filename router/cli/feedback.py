"""`lora-router feedback`: what a user thinks of an answer; what is kept, exported and deleted."""

from __future__ import annotations

import json as json_
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError, time_of
from router.cli.connect import connected
from router.cli.output import print_json, print_table

if TYPE_CHECKING:
    from router.feedback.examples import Example
    from router.feedback.model import Feedback

Answer = Annotated[
    str, typer.Argument(metavar="RESPONSE_ID", help="Of the answer, as `ask --json` shows it.")
]
Good = Annotated[bool, typer.Option("--good", help="The answer is good.")]
Bad = Annotated[bool, typer.Option("--bad", help="The answer is bad.")]
Corrected = Annotated[
    str,
    typer.Option("--corrected", metavar="FILE", help="What the answer should have been; - is stdin."),
]
ShouldHaveBeen = Annotated[
    str,
    typer.Option("--should-have-been", metavar="NAME", help="Who should have answered; base: no adapter."),
]
Comment = Annotated[str, typer.Option("--comment", metavar="TEXT", help="Why, in words.")]
AdapterName = Annotated[str, typer.Argument(metavar="ADAPTER", help="NAME, or base.")]
Since = Annotated[
    str,
    typer.Option("--since", metavar="TIME", help="What came since then, such as 2027-01-31 (UTC)."),
]
Unit = Annotated[str, typer.Option("--unit", metavar="UNIT", help="A user or session, as requests name it.")]
Tenant = Annotated[str, typer.Option("--tenant", metavar="ID", help="Only of this tenant.")]
COLUMNS = ["TIME", "TENANT", "UNIT", "VERSION", "VERDICT", "ASKED", "SHOULD HAVE BEEN"]
SHOWN = 60  # characters of a text
MOST_SHOWN = 50  # lines of a table


def record(
    response_id: Answer,
    good: Good = False,
    bad: Bad = False,
    corrected: Corrected = "",
    should_have_been: ShouldHaveBeen = "",
    comment: Comment = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Record feedback on an answer: good, bad, corrected, or another adapter's.

    Later feedback on an answer replaces the earlier. A server keeps texts with the setting
    feedback.keep=texts.

    \b
    Examples:
      lora-router feedback 9f86d081884c7d659a2feaa0c55ad015 --good
      lora-router feedback 9f86d081884c7d659a2feaa0c55ad015 --corrected right.txt
      lora-router feedback 9f86d081884c7d659a2feaa0c55ad015 --should-have-been legal
    """
    if good + bad + bool(corrected) + bool(should_have_been) != 1:
        raise CliError("say one of --good, --bad, --corrected FILE and --should-have-been NAME", MISUSED)
    right = _text(corrected) if corrected else ""
    with connected(server, timeout) as client:
        verdict = "good" if good else "bad" if bad else ""
        done = client.feedback.record(
            response_id, verdict, corrected=right, should_have_been=should_have_been, comment=comment
        )
    if json:
        print_json({"response_id": response_id, "kept": done.kept, "replaced": done.replaced})
        return
    texts = done.kept == "texts"
    what = "kept, with texts" if texts else "kept, without texts: nothing can be learned from it"
    print(what + ("; it replaces earlier feedback" if done.replaced else ""))


def list_(
    adapter: AdapterName,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """List the latest feedback on an adapter, the newest last; with --json all of it.

    \b
    Example:
      lora-router feedback list medical
    """
    with connected(server, timeout) as client:
        found = list(client.feedback.list(adapter))
    shown = found[-MOST_SHOWN:]
    if json:
        print_json(found)
    elif shown:
        print_table(COLUMNS, [_row(one) for one in shown])
        print(f"\n{len(shown)} of {len(found)}")
    else:
        print(f"no feedback on {adapter}")


def export(
    adapter: AdapterName,
    since: Since = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
) -> None:
    """Write corrected and praised answers as rows that an adapter can be trained on.

    They go to standard output as lines of JSON, each with the prompt and the response that it should get.
    Nothing is screened: rows may hold personal data and wrong corrections.

    \b
    Example:
      lora-router feedback export medical > rows.jsonl
    """
    from router.feedback.examples import Example, example_of

    left: Counter[str] = Counter()
    count, first = 0, time_of(since, "--since").timestamp() if since else 0.0
    with connected(server, timeout) as client:
        for one in client.feedback.list(adapter, since=first):
            made = example_of(one)
            if isinstance(made, Example):
                print(json_.dumps(_exported(made), ensure_ascii=False))
                count += 1
            else:
                left[made.value] += 1
    print(f"{count} rows", file=sys.stderr)
    for reason, number in left.most_common():
        print(f"{number} left out: {reason}", file=sys.stderr)


def delete(
    unit: Unit = "",
    tenant: Tenant = "",
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
) -> None:
    """Delete all feedback of a unit, of a tenant, or of a unit of a tenant, with its texts.

    \b
    Examples:
      lora-router feedback delete --unit user-7
      lora-router feedback delete --tenant acme
    """
    if not (unit or tenant):
        raise CliError("say whose: --unit UNIT, --tenant ID, or both", MISUSED)
    with connected(server, timeout) as client:
        print(f"{client.feedback.delete(unit=unit, tenant=tenant)} deleted")


def _text(source: str) -> str:
    """The content of a file, or of stdin for `-`, without the end of its last line."""
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise CliError(f"--corrected {source}: not UTF-8 at byte {error.start}", MISUSED) from None
    if not text.strip():
        raise CliError(f"--corrected {source}: is empty", MISUSED)
    return text


def _exported(made: Example) -> dict[str, object]:
    one = made.feedback
    return {
        "prompt": made.prompt,
        "response": made.response,
        "verdict": one.verdict,
        "response_id": one.response_id,
        "unit": one.unit,
        "version": one.version,
        "time": one.time,
    }


def _row(one: Feedback) -> tuple[str, ...]:
    when = datetime.fromtimestamp(one.time, UTC).isoformat(" ", timespec="seconds").removesuffix("+00:00")
    asked = _shown(one.messages[-1][1] if one.messages else "")
    return (
        when,
        one.tenant,
        one.unit[:8],
        one.version,
        one.verdict,
        asked,
        _shown(one.corrected or one.should_have_been),
    )


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
