"""`lora-router route`: where a request would go, and why; who should have answered."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import connect, flags
from router.cli.command import MISUSED, CliError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.corrections.store import Correction, CorrectionStore
    from router.types import Decision, Vote


BAR = 24
LEARNING = "not ready yet"  # nothing is wrong: it reads its examples, for a minute or two at the first start


def route(
    prompt: connect.Words = None,
    server: flags.Server = "",
    timeout: flags.Timeout = 30.0,
    json: flags.Json = False,
) -> None:
    """Show where a request would go, and why.

    Lists every classifier's vote, the threshold and the reason; nothing is generated.

    \b
    Examples:
      lora-router route "Which ICD-10-CM chapter does Beard ringworm belong to?"
      lora-router route --json - < question.txt
    """
    from router.cli.connect import connected
    from router.cli.output import print_json

    text = connect.read_prompt(prompt)
    with connected(server, timeout) as client:
        decision = client.route(text, explain=True)
    if json:
        print_json(decision)
    else:
        print_decision(decision)


def print_decision(decision: Decision) -> None:
    """Every vote, then who answers."""
    from router.cli import output
    from router.cli.connect import decision_line
    from router.cli.output import is_plain, print_table

    if decision.votes:
        plain = is_plain(sys.stdout)
        rows = [row for vote in decision.votes for row in _vote_rows(vote, plain)]
        print_table(["CLASSIFIER", "ADAPTER", "CONFIDENCE", "", "TIME", "EVIDENCE"], rows)
        print(f"\nthreshold {decision.threshold:.2f}{_calibration(decision)}")
    print(f"{decision_line(decision)}  in {output.duration(decision.latency)}")


def _calibration(decision: Decision) -> str:
    return f"  calibration {decision.calibration}" if decision.calibration else ""


def _vote_rows(vote: Vote, plain: bool) -> Sequence[tuple[str, ...]]:
    from router.cli import output
    from router.types import VoteError

    took = output.duration(vote.latency)
    if vote.error or vote.declined or not vote.scores:
        learning = vote.error is VoteError.NOT_READY
        said = LEARNING if learning else f"lost: {vote.error}" if vote.error else "declined"
        return [(vote.classifier, said, "", "", took, vote.evidence)]
    ranked = sorted(vote.scores.items(), key=lambda item: (-item[1], item[0]))
    first = (vote.classifier, took, vote.evidence)
    rows = []
    for name, score in ranked:
        head, time, evidence = first
        rows.append((head, name, f"{score:.2f}", output.bar(score, BAR, plain), time, evidence))
        first = ("", "", "")
    return rows


Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="ID", help="Only those of this tenant.", show_default=False)
]
Before = Annotated[
    str, typer.Option("--before", metavar="TIME", help="Only those from before, such as 2027-01-31 (UTC).")
]
All = Annotated[bool, typer.Option("--all", help="Every tenant's, from whenever.")]
MOST_SHOWN = 50  # lines of a table
COLUMNS = ["TIME", "TENANT", "ANSWERED BY", "SHOULD HAVE BEEN", "REASON", "TEXT"]
SHOWN = 70  # characters of a request


def list_(json: flags.Json = False) -> None:
    """List the latest corrections, the newest last; with --json all of them.

    Read from the state folder of a server over the adapters here.

    \b
    Example:
      lora-router route corrections list
    """
    from dataclasses import asdict

    from router.cli.output import print_json, print_table

    found = store_here().read()
    shown = found.corrections[-MOST_SHOWN:]
    if json:
        print_json([asdict(one) for one in found.corrections])
    elif shown:
        print_table(COLUMNS, [_correction_row(one) for one in shown])
        rest = f", {found.damaged} lines are damaged" if found.damaged else ""
        print(f"\n{len(shown)} of {len(found.corrections)}{rest}")
    else:
        print("no corrections; `serve --set corrections.keep=texts` keeps those that callers send")


def clear(
    tenant: Tenant = None,
    before: Before = "",
    all_: All = False,
) -> None:
    """Delete corrections with their texts.

    What a running server remembers of its latest answers goes when it ends.

    \b
    Examples:
      lora-router route corrections clear --tenant acme
      lora-router route corrections clear --before 2027-01-31
    """
    if all_ == bool(tenant or before):
        raise CliError("say which: --tenant ID, --before TIME or both; or --all", MISUSED)
    gone = store_here().clear(_time(before) if before else None, checked_tenant(tenant))
    print(f"{gone} taken away")


def store_here() -> CorrectionStore:
    """Of a server over the adapters here."""
    from router.cli.settings import adapter_folders, load_settings
    from router.corrections.store import FOLDER, CorrectionStore
    from router.registry.state import state_dir

    return CorrectionStore(state_dir(adapter_folders(load_settings())) / FOLDER)


def checked_tenant(said: str | None) -> str | None:
    """Raises CliError for what can be no tenant."""
    from router.corrections.store import file_name

    if said is not None:
        try:
            file_name(said)
        except ValueError as error:
            raise CliError(f"--tenant: {error}", MISUSED) from None
    return said


def _time(said: str) -> float:
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise CliError(
            f"--before {said}: must be a time such as 2027-01-31 or 2027-01-31T12:00", MISUSED
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _correction_row(one: Correction) -> tuple[str, ...]:
    when = datetime.fromtimestamp(one.time, UTC).isoformat(" ", timespec="seconds").removesuffix("+00:00")
    chosen = "?" if one.chosen is None else one.chosen or "base"
    text = one.text if len(one.text) <= SHOWN else one.text[: SHOWN - 1] + "…"
    return when, one.tenant, chosen, one.label or "base", one.reason, text
