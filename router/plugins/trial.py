"""Checks of one classifier, for `plugins doctor` and plugin authors: each lists what is wrong."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from router.classifiers.contract import Answer, Classifier, answers
from router.types import AdapterProfile, Request, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Adapters and requests to try classifiers on.


ADAPTERS = (
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

TEXTS = (
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


def requests(texts: Sequence[str]) -> tuple[Request, ...]:
    """One request of one user turn for each text."""
    return tuple(Request(f"sample-{i}", turns=(Turn("user", text),)) for i, text in enumerate(texts))


# A base model for trying classifiers where there is none: numbers of the texts' bytes.


class StandInBase:
    """`router.routing.BaseModel` as the fake engine has it: like texts get like numbers."""

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, 64] unit vectors, [texts, 192] with `ends`."""
        import numpy as np

        from router.engine.fake import WIDTH, states

        rows = [states(_bytes(text), ends) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, WIDTH), np.float32)

    def likelihood(
        self, prompt: str, continuations: Sequence[str], *, background: bool = False
    ) -> list[NDArray[np.float32]]:
        """High for what the prompt says too."""
        from router.engine.fake import log_probabilities

        return [log_probabilities(_bytes(prompt), _bytes(text)) for text in continuations]


def _bytes(text: str) -> bytes:
    if not text:
        raise ValueError("an empty text cannot be read: decline such requests")
    return text.encode(errors="replace")


WARM_CALLS = 100
FITS = 6
PAUSE = 0.02  # s between requests: a fit of many small steps would else wait for the interpreter at each
TOLERANCE = 1e-3  # padding and kernels may differ with the size of a batch

Check = Callable[[Classifier], list[str]]


def ask(classifier: Classifier, batch: Sequence[Request]) -> object:
    """What `classify_batch` returns, awaited if it is asynchronous."""
    returned: Any = classifier.classify_batch(tuple(batch))
    if not inspect.isawaitable(returned):
        return returned

    async def wait() -> object:
        return await returned

    return asyncio.run(wait())


def _answers(classifier: Classifier, texts: Sequence[str]) -> tuple[Answer, ...]:
    return answers(ask(classifier, requests(texts)), len(texts))


def valid(classifier: Classifier) -> list[str]:
    """One valid answer for each request, also for none and one."""
    problems = []
    for texts in ((), TEXTS[:1], TEXTS):
        bad = [a for a in _answers(classifier, texts) if a.error]
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
            (answer,) = _answers(classifier, (text,))
        except Exception as error:
            problems.append(f"{text[:12]!r} ({len(text)} characters) raised {type(error).__name__}")
            continue
        if answer.error:
            problems.append(f"{text[:12]!r} ({len(text)} characters) got an invalid answer")
    return problems


def batch_equals_single(classifier: Classifier) -> list[str]:
    """A request is answered alike alone and among others."""
    together = _answers(classifier, TEXTS)
    alone = [_answers(classifier, (text,))[0] for text in TEXTS]
    return [
        f"{text!r}: {dict(a.confidences)} alone, {dict(b.confidences)} in a batch"
        for text, a, b in zip(TEXTS, alone, together, strict=True)
        if not _alike(a, b)
    ]


def deterministic(classifier: Classifier) -> list[str]:
    """The same request gets the same answer again."""
    first, second = _answers(classifier, TEXTS), _answers(classifier, TEXTS)
    return [
        f"{text!r}: {dict(a.confidences)}, then {dict(b.confidences)}"
        for text, a, b in zip(TEXTS, first, second, strict=True)
        if not _alike(a, b)
    ]


def _alike(one: Answer, two: Answer) -> bool:
    if one.confidences.keys() != two.confidences.keys() or one.declined != two.declined:
        return False
    return all(abs(one.confidences[k] - two.confidences[k]) <= TOLERANCE for k in one.confidences)


def refits(classifier: Classifier) -> list[str]:
    """`fit` takes other sets, none at all and the first again; answers stay valid."""
    problems = []
    for adapters in (ADAPTERS[:1], (), (AdapterProfile("bare", "0"),), ADAPTERS):
        classifier.fit(adapters)
        if any(a.error for a in _answers(classifier, TEXTS)):
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
            classifier.fit(ADAPTERS[: 1 + i % len(ADAPTERS)])

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            if any(a.error for a in _answers(classifier, TEXTS)):
                return ["invalid answers during a fit"]
            thread.join(PAUSE)
    except Exception as error:
        return [f"raised {type(error).__name__} during a fit"]
    finally:
        stop.set()
        thread.join(10)
        classifier.fit(ADAPTERS)
    return []


def latency(classifier: Classifier, timeout: float) -> list[str]:
    """90 of 100 warm calls keep within `timeout` seconds; a busy machine may delay some."""
    batch = requests(TEXTS[:1])
    ask(classifier, batch)
    times = []
    for _ in range(WARM_CALLS):
        started = time.perf_counter()
        ask(classifier, batch)
        times.append(time.perf_counter() - started)
    slow = sorted(times)[WARM_CALLS * 9 // 10 - 1]
    if slow <= timeout:
        return []
    return [f"one warm call in ten takes over {slow * 1000:.1f} ms, its timeout is {timeout * 1000:.0f} ms"]


CHECKS: tuple[Check, ...] = (
    valid,
    odd_texts,
    batch_equals_single,
    deterministic,
    refits,
    answers_while_fitting,
)
