"""`plugins doctor`: everything that is wrong with the plugins found, by trying them.

Each check lists what is wrong with one classifier; its name is what the doctor shows. The contract
tests that plugin authors run (`router.testing`) use the same checks.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from router.classifiers.contract import Classifier, ClassifierAnswer, Registration, read_answers
from router.classifiers.fake_base import FakeBase
from router.classifiers.isolation import StillRunning, call_in_thread
from router.plugins.host import PluginHost
from router.plugins.loader import describe
from router.types import AdapterProfile, Request, Turn

WARM_CALLS = 100
FITS = 6
PAUSE = 0.02  # s between requests: a fit of many small steps would else wait for the interpreter at each
TOLERANCE = 1e-3  # padding and kernels may differ with the size of a batch

SAMPLE_ADAPTERS = (
    AdapterProfile(
        "medical",
        "1.0.0",
        domain="medical",
        task="question-answering",
        examples=(
            "What are the symptoms of anaemia?",
            "Which drug lowers blood pressure?",
            "Is asthma chronic?",
        ),
        negative_examples=("Who plays the doctor in that film?",),
        keywords=("symptoms", "drug", "blood pressure"),
    ),
    AdapterProfile(
        "legal",
        "1.0.0",
        domain="legal",
        examples=("May my landlord enter my flat?", "What is a tort?", "Is this clause enforceable?"),
        keywords=("landlord", "clause", "contract"),
    ),
    AdapterProfile(
        "translation",
        "1.0.0",
        task="translation",
        examples=(
            "Translate to French: good morning",
            "How do I say 'cat' in French?",
            "en français: a window",
        ),
        keywords=("translate", "in french"),
    ),
)

SAMPLE_TEXTS = (
    "What are the symptoms of the flu?",
    "Translate to French: the clause in the contract is void",
    "hello",
    "SHOUTING ABOUT MY LANDLORD",
)

ODD_TEXTS = (
    "",
    " \n\t ",
    "?!",
    "a",
    "\x00\x1b[31m\u202e\ufeff",
    "é" * 50,
    "漢字とひらがな 한국어 العربية",
    "👩‍👩‍👧‍👦" * 20,
    "\ud800 lone surrogate",
    "word " * 20_000,
    "x" * 100_000,
)

# -- classifiers


def prepare(classifier: Classifier) -> list[str]:
    """It binds a stand-in for the base, warms up and learns the sample adapters."""
    classifier.bind(FakeBase())
    classifier.warmup()
    classifier.fit(SAMPLE_ADAPTERS)
    return []


def valid(classifier: Classifier) -> list[str]:
    """One valid answer for each request, also for none and one."""
    problems = []
    for texts in ((), SAMPLE_TEXTS[:1], SAMPLE_TEXTS):
        bad = [a for a in _answers_of(classifier, texts) if a.error]
        if bad:
            problems.append(
                f"a batch of {len(texts)} got {len(bad)} invalid answers (Scores or None for each)"
            )
    return problems


def odd_texts(classifier: Classifier) -> list[str]:
    """Empty, huge and strange texts are answered or declined."""
    problems = []
    for text in ODD_TEXTS:
        try:
            (answer,) = _answers_of(classifier, (text,))
        except Exception as error:
            problems.append(f"{text[:12]!r} ({len(text)} characters) raised {type(error).__name__}")
            continue
        if answer.error:
            problems.append(f"{text[:12]!r} ({len(text)} characters) got an invalid answer")
    return problems


def batch_equals_single(classifier: Classifier) -> list[str]:
    """A request is answered alike alone and among others."""
    together = _answers_of(classifier, SAMPLE_TEXTS)
    alone = [_answers_of(classifier, (text,))[0] for text in SAMPLE_TEXTS]
    return [
        f"{text!r}: {dict(a.confidences)} alone, {dict(b.confidences)} in a batch"
        for text, a, b in zip(SAMPLE_TEXTS, alone, together, strict=True)
        if not _alike(a, b)
    ]


def deterministic(classifier: Classifier) -> list[str]:
    """The same request gets the same answer again."""
    first, second = _answers_of(classifier, SAMPLE_TEXTS), _answers_of(classifier, SAMPLE_TEXTS)
    return [
        f"{text!r}: {dict(a.confidences)}, then {dict(b.confidences)}"
        for text, a, b in zip(SAMPLE_TEXTS, first, second, strict=True)
        if not _alike(a, b)
    ]


def _alike(one: ClassifierAnswer, two: ClassifierAnswer) -> bool:
    if one.confidences.keys() != two.confidences.keys() or one.declined != two.declined:
        return False
    return all(abs(one.confidences[k] - two.confidences[k]) <= TOLERANCE for k in one.confidences)


def refits(classifier: Classifier) -> list[str]:
    """`fit` takes other sets, none at all and the first again; answers stay valid."""
    problems = []
    for adapters in (SAMPLE_ADAPTERS[:1], (), (AdapterProfile("bare", "0"),), SAMPLE_ADAPTERS):
        classifier.fit(adapters)
        if any(a.error for a in _answers_of(classifier, SAMPLE_TEXTS)):
            problems.append(f"invalid answers after fit with {len(adapters)} adapters")
    return problems


def answers_while_fitting(classifier: Classifier) -> list[str]:
    """Requests are answered during a fit in another thread: build the new state aside, assign it at once."""
    if type(classifier).fit is Classifier.fit:
        return []
    stop = threading.Event()

    def fit() -> None:
        for i in range(FITS):
            if stop.is_set():
                return
            classifier.fit(SAMPLE_ADAPTERS[: 1 + i % len(SAMPLE_ADAPTERS)])

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            if any(a.error for a in _answers_of(classifier, SAMPLE_TEXTS)):
                return ["invalid answers during a fit"]
            thread.join(PAUSE)
    except Exception as error:
        return [f"raised {type(error).__name__} during a fit"]
    finally:
        stop.set()
        thread.join(10)
        classifier.fit(SAMPLE_ADAPTERS)
    return []


def latency(classifier: Classifier, timeout: float) -> list[str]:
    """90 of 100 warm calls keep within `timeout` seconds; a busy machine may delay some."""
    batch = requests_of(SAMPLE_TEXTS[:1])
    call_classifier(classifier, batch)
    times = []
    for _ in range(WARM_CALLS):
        started = time.perf_counter()
        call_classifier(classifier, batch)
        times.append(time.perf_counter() - started)
    slow = sorted(times)[WARM_CALLS * 9 // 10 - 1]
    if slow <= timeout:
        return []
    return [f"one warm call in ten takes over {slow * 1000:.1f} ms, its timeout is {timeout * 1000:.0f} ms"]


CLASSIFIER_CHECKS: tuple[Callable[[Classifier], list[str]], ...] = (
    prepare,
    valid,
    odd_texts,
    batch_equals_single,
    deterministic,
    refits,
    answers_while_fitting,
)


def requests_of(texts: Sequence[str]) -> tuple[Request, ...]:
    """One request of one user turn for each text."""
    return tuple(Request(f"sample-{i}", turns=(Turn("user", text),)) for i, text in enumerate(texts))


def call_classifier(classifier: Classifier, batch: Sequence[Request]) -> object:
    """What `classify_batch` returns, awaited if it is asynchronous."""
    returned: Any = classifier.classify_batch(tuple(batch))
    if not inspect.isawaitable(returned):
        return returned

    async def wait() -> object:
        return await returned

    return asyncio.run(wait())


def _answers_of(classifier: Classifier, texts: Sequence[str]) -> tuple[ClassifierAnswer, ...]:
    return read_answers(call_classifier(classifier, requests_of(texts)), len(texts))


# -- the doctor

CHECK_SECONDS = 60.0
Check = tuple[str, Callable[[], list[str]]]  # its name, and what lists the problems


@dataclass(frozen=True, slots=True)
class PluginFinding:
    """One thing that is wrong. `classifier` is empty where it concerns the plugin."""

    plugin: str
    classifier: str
    level: str  # error: it will not work; warning: it works worse than it could
    check: str
    message: str


def doctor(host: PluginHost, seconds: float = CHECK_SECONDS) -> tuple[PluginFinding, ...]:
    """Load (if not done yet), then try every classifier; blocks, at most `seconds` a check.

    Nothing found means: it imports, its hooks are right, no name is taken twice, it learns, it answers every
    odd text in time and always alike.
    """
    host.refresh()
    findings: list[PluginFinding] = []
    for status in host.status():
        if status.error:
            findings.append(PluginFinding(status.name, "", "error", "load", status.error))
        findings += [PluginFinding(status.name, "", "warning", "load", text) for text in status.warnings]
    for registration in host.registrations():
        findings += examine(registration, seconds)
    return tuple(findings)


def examine(registration: Registration, seconds: float = CHECK_SECONDS) -> list[PluginFinding]:
    """Try one classifier. What it learned is overwritten by the samples."""
    classifier = registration.classifier
    if lacking := classifier.lacks():
        return [PluginFinding(registration.plugin, registration.name, "warning", "prepare", lacking)]
    checks: list[Check] = [(check.__name__, partial(check, classifier)) for check in CLASSIFIER_CHECKS]
    checks.append(("latency", partial(latency, classifier, registration.timeout)))
    return _examine(registration, checks, seconds)


def _examine(registration: Registration, checks: Sequence[Check], seconds: float) -> list[PluginFinding]:
    """Up to the first check that hangs; none after a preparation, which is the first, that fails."""
    findings: list[PluginFinding] = []
    for place, (name, check) in enumerate(checks):
        problems, hangs = _run(check, f"{registration.name} {name}", seconds)
        findings += [
            PluginFinding(registration.plugin, registration.name, "error", name, text) for text in problems
        ]
        if hangs or (problems and place == 0):
            break
    return findings


def _run(check: Callable[[], list[str]], name: str, seconds: float) -> tuple[list[str], bool]:
    """What is wrong, and whether the check did not come back."""
    try:
        return call_in_thread(check, seconds, name), False
    except StillRunning as error:
        return [str(error)], True
    except BaseException as error:
        return [describe(error)], False
