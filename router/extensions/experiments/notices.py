"""Notices: what a report calls for is sent once, as a metric, a log line and a signed webhook."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid4, uuid5

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from router import __version__
from router.errors import ConfigError, StoreDown, install_extra
from router.extensions.experiments import check_words, words
from router.extensions.experiments.model import RULE, AuditEntry, Lifecycle
from router.extensions.experiments.report.model import Report
from router.extensions.experiments.store.store import ExperimentStore

if TYPE_CHECKING:
    import httpx2

    from router.extensions.experiments.report.model import Report
    from router.extensions.experiments.store.store import ExperimentStore

log = logging.getLogger(__name__)
NOTICE = "notice"  # the act of an audit entry
STOPS = {"stop": "stopped", "take out": "taken out"}  # acts of the rules
WAITS = (1.0, 4.0, 16.0, 64.0, 256.0)  # seconds before each further try
TRY_SECONDS, CLOSE_SECONDS, LIMIT = 5.0, 2.0, 100  # of deliveries
RETRIED = (408, 425, 429)  # of 4xx, those that may go better later
REFUSED = {401: "the secret", 403: "the secret", 404: "the path", 405: "the path", 410: "the URL: it is gone"}


class Event(StrEnum):
    """The kinds of notices."""

    PROMOTABLE = "may-be-promoted"
    HARM = "stopped-for-harm"
    RATIO = "sample-ratio-broken"
    INVALID = "invalid"
    PLANNED = "planned-size-reached"


@dataclass(frozen=True, slots=True)
class Notice:
    """`arm` is empty where it is about none; `time` and `started`, of the phase, are unix seconds."""

    experiment: str
    phase: int
    event: Event
    arm: str
    text: str
    time: float
    numbers: Mapping[str, object] = field(default_factory=dict)
    started: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """What is sent once of an experiment. A later one of the same name started at another time."""
        return (self.phase, self.event, self.arm, self.started)

    @property
    def id(self) -> str:
        """A UUID, the same on every server and at every try, so that a receiver can tell what it has."""
        return str(uuid5(NAMESPACE_URL, "/".join(map(str, ("lora-router", self.experiment, *self.key)))))

    def to_json(self) -> dict[str, object]:
        """The webhook's payload: plain values, None where nothing finite is known."""
        text = json.dumps({"id": self.id, **asdict(self)}, default=str)
        return dict(json.loads(text, parse_constant=lambda _: None))


def due_notices(report: Report) -> tuple[Notice, ...]:
    """What the report calls for, minus what was sent by its audit trail."""
    sent = {_key(entry) for entry in report.audit if entry.act == NOTICE}
    return tuple(notice for notice in (*_harm(report), *_found(report)) if notice.key not in sent)


def notice_entry(notice: Notice, claim: str = "") -> AuditEntry:
    """The entry that remembers that it was sent; `claim` is of the server that sends it."""
    detail = {"phase": notice.phase, "event": str(notice.event), "arm": notice.arm, "started": notice.started}
    return AuditEntry(notice.experiment, notice.time, RULE, NOTICE, notice.text, {**detail, "claim": claim})


def claimed_notices(store: ExperimentStore, report: Report) -> tuple[Notice, ...]:
    """Remember what is due, and return what is for this server to send. Blocks.

    Of two servers at the same moment the one whose entry is first sends it. If the store goes down in
    between, what was written is sent: rather twice, with the same id, than never.
    """
    claim, kept = uuid4().hex, list[Notice]()
    try:
        for notice in due_notices(report):
            store.audit(notice_entry(notice, claim))
            kept.append(notice)
        trail = store.trail(report.experiment.name) if kept else ()
    except StoreDown as error:
        log.debug("notices may be sent twice: %s", error.message)
        return tuple(kept)
    firsts = {_key(entry): entry.detail.get("claim") for entry in reversed(trail) if entry.act == NOTICE}
    return tuple(notice for notice in kept if firsts.get(notice.key, claim) == claim)


def _key(entry: AuditEntry) -> tuple[object, ...]:
    return tuple(entry.detail.get(name) for name in ("phase", "event", "arm", "started"))


def _harm(report: Report) -> Iterator[Notice]:
    """From the audit trail: so it is sent too where a server ended right after the act, or in a new phase."""
    for act in report.audit:
        phase, arms = act.detail.get("phase"), act.detail.get("arms")
        if act.actor == RULE and act.act in STOPS and isinstance(phase, int) and isinstance(arms, list):
            for arm in arms:
                text = f"{arm['arm']} was {STOPS[act.act]}. {arm['text']}"
                yield _notice(report, phase, Event.HARM, text, act.time, arm, arm["arm"])


def _found(report: Report) -> Iterator[Notice]:
    phase, time, verdict = report.phase, report.time, report.verdict
    if report.experiment.state is not Lifecycle.RUNNING or phase != len(report.experiment.phases):
        return
    arms = {n.arm: {"units": n.units, "matured": n.matured, "expected": n.expected} for n in report.numbers}
    for event, of_ratio in ((Event.RATIO, True), (Event.INVALID, False)):
        if failed := [c for c in report.checks if c.failed and (c.name == "sample-ratio") is of_ratio]:
            text = " ".join(check_words.failed_check(report, check) for check in failed)
            yield _notice(report, phase, event, text, time, {"rule": failed[0].name, "arms": arms})
    numbers = {"rule": verdict.rule, "arms": arms}
    reason = " ".join([words.heading(report), *words.effect_lines(report)])
    if verdict.decision == "promote":
        primary = [asdict(arm.primary) for arm in report.arms if arm.arm == report.arm and arm.primary]
        shown = {**numbers, "primary": primary[0] if primary else None}
        yield _notice(report, phase, Event.PROMOTABLE, reason, time, shown, report.arm or "")
    matured, planned = sum(n.matured for n in report.numbers), report.judged.spec.planned_units
    if verdict.decision == "undecided" and matured >= planned:
        text = f"{words.progress(report)} took part and had their time, and it is still undecided. {reason}"
        yield _notice(report, phase, Event.PLANNED, text, time, {**numbers, "planned_units": planned})


def _notice(
    report: Report,
    phase: int,
    event: Event,
    text: str,
    at: float,
    numbers: Mapping[str, object],
    arm: str = "",
) -> Notice:
    started = next((p.started for p in report.experiment.phases if p.number == phase), 0.0)
    return Notice(report.experiment.name, phase, event, arm, text, at, numbers, started)


def signature(secret: str, body: bytes, now: float) -> str:
    """The header Lora-Router-Signature: HMAC-SHA256 of `unix seconds.body` under the secret."""
    at = str(int(now))
    return f"t={at},v1={hmac.new(secret.encode(), at.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def verify(secret: str, header: str, body: bytes, now: float, tolerance: float = 300) -> bool:
    """For receivers: whether who knows the secret signed this body, at most `tolerance` seconds from now."""
    found = re.fullmatch(r"t=([1-9][0-9]{0,11}),v1=[0-9a-f]{64}", header)
    if not secret or found is None or abs(now - int(found[1])) > tolerance:
        return False
    return hmac.compare_digest(signature(secret, body, int(found[1])), header)


def check_webhook(url: str, secret: str = "") -> None:
    """Raise ConfigError unless notices can be sent there; '' is nowhere."""
    if url and find_spec("httpx2") is None:
        text = "experiments.webhook needs the package httpx2: "
        raise ConfigError(text + install_extra("standard"))
    if url and (problem := _problem(url)):
        raise ConfigError(f"experiments.webhook {problem}")
    if secret and not url:
        raise ConfigError("experiments.webhook_secret is of use with experiments.webhook only: set both")


def _problem(url: str) -> str:
    import httpx2

    try:
        parts = urlsplit(url)
        host, _, _ = parts.hostname, parts.port, httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        host = None
    if not host or " " in url or not url.isprintable():
        return "is no URL with a host: write https://HOST/PATH or https://HOST:PORT/PATH"
    if parts.scheme not in ("http", "https"):
        return "must begin with https:// or http://"
    return "has a password in it: take it out, use experiments.webhook_secret" if "@" in parts.netloc else ""


class Notifier:
    """Call it on the event loop. `sent` is by (experiment, event), `deliveries` by what became of them.

    A delivery is tried again after `waits` seconds each; past `LIMIT` of them the oldest is dropped.
    """

    def __init__(self, url: str = "", secret: str = "", waits: Sequence[float] = WAITS) -> None:
        check_webhook(url, secret)
        self.sent: Counter[tuple[str, str]] = Counter()
        self.deliveries: Counter[str] = Counter(delivered=0, failed=0, dropped=0, retried=0)
        self._url, self._secret, self._waits = url, secret, waits
        self._shown = "{0.scheme}://{0.netloc}".format(urlsplit(url))  # the rest may be secret
        self._turn, self._closing = asyncio.Lock(), asyncio.Event()
        self._tasks: dict[asyncio.Task[None], Notice] = {}
        self._client: httpx2.AsyncClient | None = None

    def start(self) -> None:
        """Get ready to send. Raises ConfigError where the environment lets no client be made."""
        if self._url:
            import httpx2

            try:
                self._client = httpx2.AsyncClient(timeout=None)
            except (OSError, ValueError, httpx2.InvalidURL) as error:
                text = "experiments.webhook needs right SSL_CERT_FILE and HTTPS_PROXY"
                raise ConfigError(text) from error
            logging.getLogger("httpx2").addFilter(_harmless)

    def send(self, notice: Notice) -> None:
        """Count it, log it, and send it later. Returns at once."""
        self.sent[notice.experiment, str(notice.event)] += 1
        _log(logging.WARNING, "experiment notice", notice, arm=notice.arm, text=notice.text)
        if not self._url:
            return
        if self._client is None or self._closing.is_set():
            return self._became("dropped", notice, "the server is not running")
        if len(self._tasks) >= LIMIT:
            oldest, dropped = next(iter(self._tasks.items()))
            del self._tasks[oldest]
            if oldest.cancel():
                self._became("dropped", dropped, f"more than {LIMIT} wait: check the receiver")
        task = asyncio.create_task(self._deliver(self._client, notice), name="experiment notice")
        self._tasks[task] = notice
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def close(self) -> None:
        """Try once more what waits, for seconds at most, then give it up."""
        self._closing.set()
        left = (await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS))[1] if self._tasks else set()
        for task in left:
            self._became("failed", self._tasks[task], "the server ends")
            task.cancel()
        if self._client is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.gather(*left, return_exceptions=True)
                    await self._client.aclose()

    async def _deliver(self, client: httpx2.AsyncClient, notice: Notice) -> None:
        try:
            body = json.dumps(notice.to_json()).encode()
            for wait in (*self._waits, None):
                problem, again = await self._try(client, notice, body)
                if not problem:
                    return self._became("delivered", notice)
                if not again or wait is None or self._closing.is_set():
                    return self._became("failed", notice, problem)
                self._became("retried", notice, problem)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait * random.uniform(0.8, 1.2)):
                        await self._closing.wait()
        except Exception:
            log.exception("an experiment notice could not be sent")
            self.deliveries["failed"] += 1

    async def _try(self, client: httpx2.AsyncClient, notice: Notice, body: bytes) -> tuple[str, bool]:
        """What went wrong, and whether it may go better later."""
        import httpx2

        try:
            async with self._turn, asyncio.timeout(TRY_SECONDS):
                status = await self._post(client, notice, body)
        except TimeoutError:
            return f"no answer within {TRY_SECONDS:g} s", True
        except (httpx2.HTTPError, OSError, UnicodeError) as error:
            return f"{type(error).__name__}: {error}".rstrip(": "), True
        if 200 <= status < 300:
            return "", False
        if 400 <= status < 500 and status not in RETRIED:
            return f"answered {status}: check {REFUSED.get(status, 'what its log says')}", False
        moved = ": set experiments.webhook to where it redirects" if 300 <= status < 400 else ""
        return f"answered {status}{moved}", True

    async def _post(self, client: httpx2.AsyncClient, notice: Notice, body: bytes) -> int:
        headers = {"Content-Type": "application/json", "User-Agent": f"lora-router/{__version__}"}
        headers |= {"Lora-Router-Event": str(notice.event), "Lora-Router-Delivery": notice.id}
        if self._secret:
            headers["Lora-Router-Signature"] = signature(self._secret, body, time.time())
        async with client.stream("POST", self._url, content=body, headers=headers) as answer:
            return answer.status_code  # its body is not read

    def _became(self, what: str, notice: Notice, problem: str = "") -> None:
        self.deliveries[what] += 1
        level = {"delivered": logging.INFO, "retried": logging.WARNING}.get(what, logging.ERROR)
        _log(level, f"experiment notice {what}", notice, webhook=self._shown, problem=problem)


def _log(level: int, message: str, notice: Notice, **more: str) -> None:
    of = {"experiment": notice.experiment, "phase": notice.phase, "notice": str(notice.event)}
    log.log(level, message, extra={"fields": {**of, "delivery": notice.id, **more}})


def _harmless(record: logging.LogRecord) -> bool:
    """The client logs whole URLs of what it did, and a query may be a secret."""
    return record.levelno > logging.INFO


def notice_observer(notifier: Notifier, store: ExperimentStore) -> Callable[[Report], None]:
    """An observer that sends the notices a report calls for. It claims them first, so that no other server
    sends them. It blocks, in a thread; make it on the event loop."""
    loop = asyncio.get_running_loop()

    def observe(report: Report) -> None:
        for notice in claimed_notices(store, report):
            loop.call_soon_threadsafe(notifier.send, notice)

    return observe


class NoticeMetrics(Collector):
    """Counters of notices and of their deliveries."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        sent = CounterMetricFamily(
            "lora_router_experiment_notices", "Notices of experiments.", labels=("experiment", "event")
        )
        for key, value in tuple(self._notifier.sent.items()):
            sent.add_metric(key, value)
        deliveries = CounterMetricFamily(
            "lora_router_experiment_notice_deliveries",
            "Results of sending notices to the webhook.",
            labels=("result",),
        )
        for result, value in tuple(self._notifier.deliveries.items()):
            deliveries.add_metric((result,), value)
        yield from (sent, deliveries)
