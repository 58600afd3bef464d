"""What is wrong now: each problem in a sentence, with what to do about it.

Checks read what the server knows already, so that a page may run them every two seconds. What takes longer,
or has to be compared with before, is looked at every few seconds (`Watch`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from router.errors import RouterError
from router.extensions.console.rendering import segment, size
from router.extensions.console.traffic import FEWEST, LATELY, RANGES, Outcome, Traffic, TrafficCount
from router.quantities import counted, percent
from router.types import AdapterRef

if TYPE_CHECKING:
    from router.experiments.report.model import Report
    from router.experiments.runtime import LiveExperiments
    from router.extensions.console.site import ConsoleContext, Visit

log = logging.getLogger(__name__)
BAD, WARN, INFO = "bad", "warn", "info"
ORDER = {BAD: 0, WARN: 1, INFO: 2}
EVERY, DISK_EVERY = 5.0, 60.0  # seconds between looks
Z = 2.576  # of a 99 % interval
FEWEST_VOTES, LOST_SHARE = 20, 0.02
LITTLE_DISK, LITTLE_SHARE = 500e6, 0.02  # bytes free, and their share of the disk
CERTIFICATE_DAYS = 14
MOST_QUARANTINED, MOST_REASONS, MOST_FLAWS, MOST_EXPERIMENTS = 5, 3, 20, 10
KEPT_SECONDS = 86_400.0  # an experiment that was stopped for harm is shown for so long


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `fix` says what to do; `path` is a page of the console, and `page` its name;
    `command` is for a terminal."""

    tone: str
    text: str
    fix: str = ""
    path: str = ""
    page: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found, the worst first, and what they looked at."""

    problems: Sequence[Problem]
    looked_at: Sequence[str]


ACTIVITY = {"path": "/activity?kind=refusals", "page": "Refused calls"}
ADAPTERS = {"path": "/adapters", "page": "Adapters"}
ROUTING = {"path": "/routing", "page": "Routing"}
FIXES: Mapping[str, Problem] = {  # by the reason of an error; only what to do is read
    "TOKEN_MISSING": Problem("", "", "These clients send no token.", **ACTIVITY),
    "TOKEN_INVALID": Problem(
        "", "", "These clients send a token that is not in the clients file.", **ACTIVITY
    ),
    "ROLE_MISSING": Problem("", "", "These clients lack the role for what they call.", **ACTIVITY),
    "INVALID_REQUEST": Problem(
        "", "", "Clients send requests that are not valid; each answer names the field."
    ),
    "PROMPT_TOO_LONG": Problem(
        "", "", "Prompts are longer than the context; send less text, or serve a base with a longer context."
    ),
    "ADAPTER_NOT_FOUND": Problem("", "", "Clients name adapters that are not here.", **ADAPTERS),
    "ADAPTER_REJECTED": Problem("", "", "Clients name a version that is quarantined.", **ADAPTERS),
    "QUEUE_FULL": Problem(
        "",
        "",
        "More requests come than the server can take: send fewer at once, raise max_queue, or add replicas.",
    ),
    "QUOTA": Problem("", "", "Clients have used up their quota; the clients file has the limits."),
    "MODEL_LOADING": Problem("", "", "The base is loading: wait."),
    "DRAINING": Problem("", "", "The server is stopping."),
    "DEADLINE_EXCEEDED": Problem(
        "", "", "Answers take longer than clients wait: see first token and queue below."
    ),
    "ENGINE_FAILED": Problem("", "", "Start the server again; the log has the error."),
    "INTERNAL": Problem("", "", "The log has the error and the request id."),
    "STORE_DOWN": Problem("", "", "The database of experiments does not answer."),
    "CANCELLED": Problem("", "", "Clients hang up before the answer is complete: see the times below."),
}


def check(visit: Visit) -> Checked:
    """All checks. A client that may not know of all adapters sees health, and its own adapters."""
    console, context = visit.console, visit.console.context
    everything = visit.client.adapters.everything
    found: list[Problem] = [*health(context, everything)]
    quarantined = [ref for ref in console.events.quarantined() if ref.name in visit.client.adapters]
    found += quarantine(context, quarantined)
    looked_at = ["health", "adapters"]
    if everything:
        lately = console.traffic.total(LATELY)
        found += [
            *outcomes(console.traffic, lately),
            *classifiers(context, lately),
            *credentials(context),
            *telemetry(lately),
            *disks(console.watch.disks),
            *experiments(console.verdicts),
        ]
        looked_at = [
            "health",
            counted(lately.requests, "request") + " of the last 15 minutes",
            "adapters",
            "classifiers and calibration",
            "experiments",
            "credentials",
            "audit and telemetry",
            "disk space",
        ]
    unique = {problem.text: problem for problem in found}
    return Checked(sorted(unique.values(), key=lambda one: ORDER[one.tone]), looked_at)


def health(context: ConsoleContext, everything: bool) -> Iterator[Problem]:
    """Why the server is not ready, and what is degraded, which may quote paths and adapters: in words only
    for who may see `everything`."""
    for reason in context.health.reasons:
        waits = reason.startswith(("the base model is still", "the server is stopping"))
        fix = (
            "Requests are refused until then." if waits else "Start the server again; the log has the cause."
        )
        yield Problem(WARN if waits else BAD, sentence(reason), fix)
    degraded = context.health.degraded
    if degraded and not everything:
        yield Problem(WARN, "Something is degraded.", 'Clients with adapters = ["*"] see what it is.')
    for text in islice(degraded, MOST_FLAWS if everything else 0):
        yield Problem(WARN, sentence(text), **where(text))


def where(text: str) -> dict[str, str]:
    """The page or command that mends a reason of health, by its first words."""
    known: Sequence[tuple[str, dict[str, str]]] = (
        ("classifier", ROUTING),
        ("the calibration", {**ROUTING, "command": "lora-router route calibrate"}),
        ("plugin", {"command": "lora-router plugins list"}),
        ("replica", {"command": "lora-router replicas list"}),
        ("the clients file", {"fix": "Correct the file; it is read again by itself."}),
        ("the TLS files", {"fix": "Correct the files; they are read again by themselves."}),
        ("the certificate", {"fix": "Replace tls_cert and tls_key; they are read again by themselves."}),
        ("the list of digests", {"fix": "Correct the file; it is read again by itself."}),
    )
    return next((found for start, found in known if text.startswith(start)), {})


def outcomes(traffic: Traffic, lately: TrafficCount) -> Iterator[Problem]:
    """Requests that failed, and shares of refused and cancelled ones that are unusual."""
    requests = lately.requests
    for outcome, floor in ((Outcome.FAILED, 0.0), (Outcome.REFUSED, 0.02), (Outcome.CANCELLED, 0.1)):
        count = lately.outcomes[outcome]
        if not count:
            continue
        usual = usual_share(traffic, lately, outcome)
        share, least = count / requests, wilson(count, requests)[0]
        unusual = requests >= FEWEST and least > max(2 * (usual or 0.0), floor)
        if not (outcome is Outcome.FAILED or unusual or share >= 0.5):
            continue
        serious = share >= 0.5 if outcome is not Outcome.FAILED else share >= 0.01
        yield outcome_problem(BAD if serious and requests >= FEWEST else WARN, outcome, lately, usual)


def outcome_problem(tone: str, outcome: Outcome, lately: TrafficCount, usual: float | None) -> Problem:
    """In words, with the commonest reasons."""
    count, reasons = lately.outcomes[outcome], lately.reasons.get(outcome, Counter())
    most = reasons.most_common(MOST_REASONS)
    named = ", ".join(f"{reason} {number:,}" for reason, number in most)
    were = "was" if count == 1 else "were"
    verb = "failed" if outcome is Outcome.FAILED else f"{were} {outcome}"
    share = percent(count / lately.requests)
    text = f"{count:,} of {counted(lately.requests, 'request')} ({share}) {verb} in the last 15 minutes"
    before = f"; usually {percent(usual)}" if usual is not None else ""
    fix = FIXES.get(most[0][0], Problem("", "")) if most else Problem("", "")
    shown = f"{text}{before}: {named}." if named and outcome is not Outcome.CANCELLED else f"{text}{before}."
    return Problem(tone, shown, fix.fix, fix.path, fix.page, fix.command)


def usual_share(traffic: Traffic, lately: TrafficCount, outcome: Outcome) -> float | None:
    """The share in the 24 hours before the last 15 minutes; None for too few requests."""
    day = traffic.total(RANGES["24h"])
    requests = day.requests - lately.requests
    return (day.outcomes[outcome] - lately.outcomes[outcome]) / requests if requests >= 20 else None


def wilson(count: int, of: int, z: float = Z) -> tuple[float, float]:
    """The range of a share (Wilson's interval).

    >>> [round(end, 3) for end in wilson(63, 63)]
    [0.905, 1.0]
    """
    share, spread = count / of, z * z / of
    middle, wide = share + spread / 2, z * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, (middle - wide) / (1 + spread)), min(1.0, (middle + wide) / (1 + spread))


def classifiers(context: ConsoleContext, lately: TrafficCount) -> Iterator[Problem]:
    """Classifiers that fail, votes that were lost, and plugins that do not work."""
    state = context.routing()
    reported = " ".join(context.health.degraded)
    for one in state.classifiers:
        if f"classifier {one.name}" in reported or one.state == "off":
            continue
        if one.state in ("failed", "disabled") or one.breaker != "closed":
            why = f": {one.problem}" if one.problem else ""
            is_off = one.breaker != "closed"
            what = f"is switched off for now (breaker {one.breaker})" if is_off else f"is {one.state}"
            yield Problem(WARN, sentence(f"classifier {one.name} {what}{why}"), **ROUTING)
    for name, votes in lately.votes.most_common():
        lost = lately.lost[name]
        if votes >= FEWEST_VOTES and lost >= LOST_SHARE * votes:
            share = percent(lost / votes)
            text = f"Classifier {name} lost {lost:,} of {votes:,} votes ({share}) in the last 15 minutes."
            yield Problem(
                WARN,
                text,
                "It was too slow or raised; other classifiers decided, or the base answered.",
                **ROUTING,
            )
    for problem in islice(state.problems, MOST_FLAWS):
        if problem not in reported:
            yield Problem(
                WARN,
                sentence(f"plugin {problem.removeprefix('plugin ')}"),
                command="lora-router plugins list",
            )


def quarantine(context: ConsoleContext, refs: Sequence[AdapterRef]) -> Iterator[Problem]:
    """Versions that the server refuses, with the reason."""
    for ref in refs[:MOST_QUARANTINED]:
        try:
            error = context.registry.get(ref.name, ref.version).error
        except RouterError:
            continue  # it has gone
        path = f"/adapters/{segment(ref.name)}/{segment(ref.version)}"
        yield Problem(
            WARN, sentence(f"adapter {ref} is quarantined: {error[:300]}"), path=path, page=ref.name
        )
    if len(refs) > MOST_QUARANTINED:
        more = counted(len(refs) - MOST_QUARANTINED, "further version")
        yield Problem(WARN, f"{more} {'is' if more.startswith('1 ') else 'are'} quarantined.", **ADAPTERS)


def credentials(context: ConsoleContext) -> Iterator[Problem]:
    """A certificate that ends soon, and audit lines that were not written. `health` has files that cannot be
    used."""
    left = context.certificate_ends() - time.time()
    if 0 < left < CERTIFICATE_DAYS * 86_400:
        text = f"The certificate of the server ends in {counted(int(left // 86_400), 'day')}."
        yield Problem(WARN, text, "Replace tls_cert and tls_key; they are read again by themselves.")
    if lost := context.unaudited():
        text = f"The audit file did not take {counted(lost, 'line')} since the start."
        yield Problem(BAD, text, "Free its disk, or correct its rights.")


def telemetry(lately: TrafficCount) -> Iterator[Problem]:
    """Spans and readings that the collector did not take."""
    if lost := lately.telemetry:
        text = f"The OTLP collector did not take {lost:,} spans or readings in the last 15 minutes."
        yield Problem(WARN, text, "See whether it runs at the address of otel.endpoint.")


def disks(found: Mapping[Path, tuple[int, int]]) -> Iterator[Problem]:
    """Folders on disks that are nearly full: bytes free and in all."""
    for folder, (free, total) in found.items():
        if free < LITTLE_DISK or free < LITTLE_SHARE * total:
            text = f"The disk of {folder.name or folder} has {size(free)} free of {size(total)}."
            yield Problem(
                BAD if free < LITTLE_DISK / 10 else WARN,
                text,
                "Free space: state, feedback and audit are written there.",
            )


def experiments(verdicts: Verdicts) -> Iterator[Problem]:
    """Experiments that may be decided, do harm, or are not valid."""
    for name, verdict in islice(verdicts.shown(), MOST_EXPERIMENTS):
        tone, text, fix = {
            "promote": (
                INFO,
                f"Experiment {name} may be decided: {verdict}.",
                "Promote the arm, or let it run on.",
            ),
            "stop for harm": (BAD, f"Experiment {name} does harm: {verdict}.", "Stop it, if it still runs."),
            "invalid": (
                WARN,
                f"Experiment {name} is not valid: {verdict}.",
                "Its page names the failed check.",
            ),
        }[verdicts.decisions[name]]
        yield Problem(tone, text, fix, f"/experiments/{segment(name)}", name)


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("no step for 3 s")
    'No step for 3 s.'
    """
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


class Verdicts:
    """The latest verdict of each running experiment, as the guardian of experiments found it."""

    def __init__(self, live: LiveExperiments | None = None) -> None:
        self._live = live
        self.decisions: dict[str, str] = {}
        self._said: dict[str, tuple[float, str]] = {}
        if live is not None:
            live.guardian.observers.append(self.note)

    def note(self, report: Report) -> None:
        """A report was made; in the thread of the look."""
        from router.experiments.words import heading

        self.noted(report.experiment.name, str(report.verdict.decision), heading(report))

    def noted(self, name: str, decision: str, heading: str) -> None:
        """The verdict of an experiment, in one sentence."""
        if decision == "undecided":
            self.decisions.pop(name, None)
        else:
            self._said[name] = time.time(), heading.rstrip(".")
            self.decisions[name] = decision

    def shown(self) -> Iterator[tuple[str, str]]:
        """Name and verdict of those that run, and of those that were stopped for harm within a day."""
        running = (
            {one.name for one in self._live.assigner.snapshot.all()} if self._live is not None else set()
        )
        for name, decision in tuple(self.decisions.items()):
            noted, said = self._said[name]
            if name in running or (decision == "stop for harm" and time.time() - noted < KEPT_SECONDS):
                yield name, said
            else:
                self.decisions.pop(name, None)


class Watch:
    """Looks every few seconds at what has to be compared with before: queue, lost telemetry, disks."""

    def __init__(self, context: ConsoleContext, traffic: Traffic) -> None:
        self._context, self._traffic = context, traffic
        self.disks: Mapping[Path, tuple[int, int]] = {}  # by folder: bytes free, and in all
        self._lost, self._next_disks = 0.0, 0.0

    async def follow(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # a console that cannot look stops no server
                log.exception("the console could not look at the server")
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Look once."""
        status, lost = self._context.engine.status(), self._context.telemetry_lost()
        self._traffic.look(status.running, status.waiting, round(lost - self._lost))
        self._lost = lost
        if time.monotonic() >= self._next_disks:
            self._next_disks = time.monotonic() + DISK_EVERY
            self.disks = await asyncio.to_thread(free, self._context.folders)


def free(folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Bytes free and in all, of folders that are there."""
    found = {}
    for folder in folders:
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        found[folder] = usage.free, usage.total
    return found
