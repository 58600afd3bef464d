"""`lora-router route`: where a request would go, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from router.cli import connect, flags, output
from router.cli.connect import connected, decision_line
from router.cli.output import is_plain, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    text = connect.read_prompt(prompt)
    with connected(server, timeout) as client:
        decision = client.route(text, explain=True)
    if json:
        print_json(decision)
    else:
        print_decision(decision)


def print_decision(decision: Decision) -> None:
    """Every vote, then who answers."""
    if decision.votes:
        plain = is_plain(sys.stdout)
        rows = [row for vote in decision.votes for row in _vote_rows(vote, plain)]
        print_table(["CLASSIFIER", "ADAPTER", "CONFIDENCE", "", "TIME", "EVIDENCE"], rows)
        print(f"\nthreshold {decision.threshold:.2f}{_calibration(decision)}")
    print(f"{decision_line(decision)}  in {output.duration(decision.latency)}")


def _calibration(decision: Decision) -> str:
    return f"  calibration {decision.calibration}" if decision.calibration else ""


def _vote_rows(vote: Vote, plain: bool) -> Sequence[tuple[str, ...]]:
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
