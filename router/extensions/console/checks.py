"""What needs attention now: problems in sentences, grouped by cause, with what to do about each.

Checks read what the server knows already, so that a page may run them every two seconds.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from router.errors import RouterError
from router.extensions.console.rendering import segment, size
from router.extensions.console.request_log import LATELY, WRONG, Outcome
from router.quantities import counted, percent
from router.server.metrics import samples_of
from router.types import AdapterState

if TYPE_CHECKING:
    from router.extensions.console.site import Visit
    from router.extensions.console.verdicts import Verdicts
    from router.server.app import ServerApp

BAD, WARN, INFO = "bad", "warn", "info"
ORDER = {BAD: 0, WARN: 1, INFO: 2}
FEWEST = 5  # requests that a share says something of
SERIOUS, UNUSUAL = 0.5, 0.1  # shares of requests
LITTLE_DISK, LITTLE_SHARE = 500e6, 0.02  # bytes free, and their share of the disk
CERTIFICATE_DAYS = 14
MOST_SHOWN, MOST_NAMED = 20, 3  # of one cause; codes in its line


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `cause` is the line that stands for several of a kind, `{n}` their number;
    `fix` says what to do; `path` is a page of the console, and `page` its name; `command` is for a
    terminal."""

    tone: str
    cause: str
    text: str
    fix: str = ""
    path: str = ""
    page: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Problems of one cause, at most MOST_SHOWN of `count`: a line that unfolds."""

    tone: str
    line: str
    problems: Sequence[Problem]
    count: int


ADAPTERS = {"path": "/adapters?state=quarantined", "page": "Adapters"}
ROUTING = {"path": "/routing", "page": "Routing"}
FIXES: Mapping[str, str] = {  # by the reason of an error
    "TOKEN_MISSING": "These clients send no token.",
    "TOKEN_INVALID": "These clients send a token that is not in the clients file.",
    "ROLE_MISSING": "These clients lack the role for what they call.",
    "INVALID_REQUEST": "Clients send requests that are not valid; each answer names the field.",
    "PROMPT_TOO_LONG": "Prompts are longer than the context: send less text, or serve another base.",
    "ADAPTER_NOT_FOUND": "Clients name adapters that are not here.",
    "ADAPTER_REJECTED": "Clients name a version that is quarantined.",
    "QUEUE_FULL": "More requests come than the server can take: send fewer at once, raise max_queue, or add"
    " replicas.",
    "QUOTA": "Clients have used up their quota; the clients file has the limits.",
    "MODEL_LOADING": "The base is loading: wait.",
    "DRAINING": "The server is stopping.",
    "DEADLINE_EXCEEDED": "Answers take longer than clients wait: see the times of these requests.",
    "ENGINE_FAILED": "Start the server again; the log has the error.",
    "INTERNAL": "The log has the error and the request id.",
    "STORE_DOWN": "The database of experiments does not answer.",
    "CANCELLED": "Clients hang up before the answer is complete: see the times of these requests.",
}


def check(visit: Visit, disks: Mapping[Path, tuple[int, int]]) -> list[Group]:
    """All checks, the worst first. A client that may not know of all adapters sees health, and its own
    adapters."""
    console, server, visible = visit.console, visit.console.server, visit.client.adapters
    found = [*health(server, visible.everything), *quarantine(server, visible.__contains__)]
    if visible.everything:
        found += [
            *outcomes(console.requests.lately()),
            *classifiers(server),
            *credentials(server),
            *nearly_full(disks),
            *experiments(console.verdicts),
        ]
    return grouped(found)


def grouped(found: Iterable[Problem]) -> list[Group]:
    """By cause, the worst first; what is said twice counts once."""
    causes: dict[str, dict[str, Problem]] = {}
    for one in found:
        causes.setdefault(one.cause, {}).setdefault(one.text, one)
    groups = []
    for cause, problems in causes.items():
        every = list(problems.values())
        tone = min((one.tone for one in every), key=ORDER.__getitem__)
        line = every[0].text if len(every) == 1 else cause.replace("{n}", f"{len(every):,}")
        groups.append(Group(tone, line, every[:MOST_SHOWN], len(every)))
    return sorted(groups, key=lambda group: ORDER[group.tone])


def health(server: ServerApp, everything: bool) -> Iterator[Problem]:
    """Why the server is not ready, and what is degraded, which may quote paths and adapters: in words only
    for who may see `everything`."""
    for reason in server.health.reasons:
        waits = reason.startswith(("the base model is still", "the server is stopping"))
        fix = (
            "Requests are refused until then." if waits else "Start the server again; the log has the cause."
        )
        yield Problem(
            WARN if waits else BAD, "The server is not ready, for {n} reasons.", sentence(reason), fix
        )
    degraded = server.health.degraded
    if degraded and not everything:
        fix = 'Clients with adapters = ["*"] see what it is.'
        yield Problem(WARN, FLAWS, "Something is degraded.", fix)
    for text in degraded if everything else ():
        cause, where = next(
            ((cause, found) for start, cause, found in DEGRADED if text.startswith(start)), (FLAWS, {})
        )
        yield Problem(WARN, cause, sentence(text), **where)


FLAWS = "{n} things are degraded."
CLASSIFIERS = "{n} classifiers do not vote."
PLUGINS = "{n} plugins do not work."
FILES = "{n} files of credentials cannot be used."
REREAD = {"fix": "Correct the file; it is read again by itself."}
DEGRADED: Sequence[tuple[str, str, dict[str, str]]] = (  # first words, cause, and where it is mended
    ("classifier", CLASSIFIERS, ROUTING),
    ("the calibration", FLAWS, {**ROUTING, "command": "lora-router route calibrate"}),
    ("plugin", PLUGINS, {"command": "lora-router plugins list"}),
    ("replica", "{n} replicas are degraded.", {"command": "lora-router replicas list"}),
    ("the clients file", FILES, REREAD),
    ("the TLS files", FILES, REREAD),
    ("the certificate", FILES, {"fix": "Replace tls_cert and tls_key; they are read again."}),
    ("the list of digests", FILES, REREAD),
)


def outcomes(lately: Counter[tuple[Outcome, str]]) -> Iterator[Problem]:
    """Requests that failed, and shares of refused and cancelled ones that are large."""
    requests = lately.total()
    for outcome in (*WRONG, Outcome.CANCELLED):
        codes = Counter({code: number for (one, code), number in lately.items() if one is outcome})
        if not (number := codes.total()):
            continue
        share = number / requests
        failed, enough = outcome is Outcome.FAILED, requests >= FEWEST
        if not failed and share < (UNUSUAL if outcome is Outcome.REFUSED and enough else SERIOUS):
            continue
        verb = "failed" if failed else f"{'was' if number == 1 else 'were'} {outcome}"
        of = counted(requests, "request")
        what = f"{number:,} of {of} ({percent(share)}) {verb} in the last {LATELY} minutes"
        cause = f"{what}: {', '.join(f'{code} {times:,}' for code, times in codes.most_common(MOST_NAMED))}."
        serious = share >= (0.01 if failed else SERIOUS) and enough
        for code, times in codes.most_common():
            path = f"/requests?{urlencode({'outcome': outcome.value, 'code': code})}"
            text = f"{what}: {code}." if len(codes) == 1 else f"{code}: {counted(times, 'request')}."
            fix = FIXES.get(code, "")
            yield Problem(BAD if serious else WARN, cause, text, fix, path, "these requests")


def classifiers(server: ServerApp) -> Iterator[Problem]:
    """Classifiers that fail, and plugins that do not work."""
    state = server.router.state()
    reported = " ".join(server.health.degraded)
    for one in state.classifiers:
        if f"classifier {one.name}" in reported or one.state == "off":
            continue
        if one.state in ("failed", "disabled") or one.breaker != "closed":
            why = f": {one.problem}" if one.problem else ""
            is_off = one.breaker != "closed"
            what = f"is switched off for now (breaker {one.breaker})" if is_off else f"is {one.state}"
            text = sentence(f"classifier {one.name} {what}{why}")
            yield Problem(WARN, CLASSIFIERS, text, **ROUTING)
    for problem in state.problems:
        if problem not in reported:
            text = sentence(f"plugin {problem.removeprefix('plugin ')}")
            yield Problem(WARN, PLUGINS, text, command="lora-router plugins list")


def quarantine(server: ServerApp, visible: Callable[[str], bool]) -> Iterator[Problem]:
    """Versions that the server refuses, with the reason."""
    states = server.metrics.states
    refs = (ref for ref, state in states.items() if state is AdapterState.QUARANTINED and visible(ref.name))
    for ref in sorted(refs, key=lambda ref: (ref.name, ref.version)):
        try:
            error = server.registry.get(ref.name, ref.version).error
        except RouterError:
            continue  # it has gone
        path = f"/adapters/{segment(ref.name)}/{segment(ref.version)}"
        text = sentence(f"adapter {ref} is quarantined: {error[:300]}")
        yield Problem(WARN, "{n} adapter versions are quarantined.", text, path=path, page=ref.name)


def credentials(server: ServerApp) -> Iterator[Problem]:
    """A certificate that ends soon, and records that were not written. `health` has files that cannot be
    used."""
    left = server.tls.expires - time.time() if server.tls is not None else math.inf
    if 0 < left < CERTIFICATE_DAYS * 86_400:
        text = f"The certificate of the server ends in {counted(int(left // 86_400), 'day')}."
        yield Problem(WARN, FILES, text, "Replace tls_cert and tls_key; they are read again.")
    if server.audit is not None and (lost := server.audit.failed):
        text = f"The audit file did not take {counted(lost, 'line')} since the start."
        yield Problem(BAD, text, text, "Free its disk, or correct its rights.")
    if lost := round(sum(number for _, number in samples_of(server.metrics.telemetry_lost, "_total"))):
        text = f"The OTLP collector did not take {lost:,} spans or readings since the start."
        yield Problem(WARN, text, text, "See whether it runs at the address of otel.endpoint.")


def nearly_full(disks: Mapping[Path, tuple[int, int]]) -> Iterator[Problem]:
    """Folders on disks that are nearly full: bytes free and in all."""
    for folder, (left, total) in disks.items():
        if left < LITTLE_DISK or left < LITTLE_SHARE * total:
            text = f"The disk of {folder.name or folder} has {size(left)} free of {size(total)}."
            fix = "Free space: state, feedback and audit are written there."
            yield Problem(BAD if left < LITTLE_DISK / 10 else WARN, "{n} disks are nearly full.", text, fix)


def experiments(verdicts: Verdicts) -> Iterator[Problem]:
    """Experiments that may be decided, do harm, or are not valid."""
    for name, verdict in verdicts.shown():
        tone, cause, what, fix = {
            "promote": (
                INFO,
                "{n} experiments may be decided.",
                "may be decided",
                "Promote the arm, or let it run on.",
            ),
            "stop for harm": (BAD, "{n} experiments do harm.", "does harm", "Stop it, if it still runs."),
            "invalid": (
                WARN,
                "{n} experiments are not valid.",
                "is not valid",
                "Its page names the failed check.",
            ),
        }[verdicts.decisions[name]]
        text = f"Experiment {name} {what}: {verdict}."
        yield Problem(tone, cause, text, fix, f"/experiments/{segment(name)}", name)


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("no step for 3 s")
    'No step for 3 s.'
    """
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def free(folders: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Bytes free and in all, of folders that are there. Blocks."""
    found = {}
    for folder in folders:
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        found[folder] = usage.free, usage.total
    return found
