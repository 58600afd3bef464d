"""Classifiers that are slow, that lie, that die; batches; and fits: off the loop, never two at once."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.classifiers.contract import ClassifierAnswer
from router.classifiers.fake_base import FakeBase
from router.routing import HIDDEN_STATES, Classifier, Scores
from router.routing.executor import Fitter
from router.types import AdapterProfile

SURE = Scores({"a": 1.0})


def raising(error: BaseException) -> Any:
    def answer(request: Any) -> Scores:
        raise error

    return answer


async def test_an_idle_classifier_is_called_at_once_and_a_busy_one_collects(
    kit: Any, executor_of: Any
) -> None:
    gate = threading.Event()
    says = kit.says("c", lambda r: gate.wait(5) and SURE)
    executor = executor_of(kit.registered(says))
    first = executor.classify(kit.asking())
    await asyncio.sleep(0.05)
    rest = [executor.classify(kit.asking(str(i))) for i in range(40)]
    gate.set()
    assert {a.confidences["a"] for a in await asyncio.gather(first, *rest)} == {1.0}
    assert says.batches == [1, 32, 8]


@pytest.mark.parametrize(
    "error", [ValueError("secret"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
)
async def test_whatever_is_raised_costs_a_vote_and_the_thread_lives(
    kit: Any, executor_of: Any, error: BaseException
) -> None:
    registration = kit.registered(kit.says("c", raising(error)))
    executor = executor_of(registration)
    for _ in range(2):
        assert await executor.classify(kit.asking()) == ClassifierAnswer(error="raised")
    assert registration.health.errors == 2
    assert type(error).__name__ in registration.health.last_error
    assert "secret" not in registration.health.last_error


@pytest.mark.parametrize("answer", [Scores({"a": math.nan}), "yes", Scores({"a": 2.0}), 0.9, Scores({})])
async def test_nonsense_costs_a_vote(kit: Any, executor_of: Any, answer: Any) -> None:
    registration = kit.registered(kit.says("c", answer))
    assert await executor_of(registration).classify(kit.asking()) == ClassifierAnswer(error="invalid")
    assert registration.health.last_error == "invalid scores"


async def test_a_wrong_length_costs_all_votes_of_the_batch(kit: Any, executor_of: Any) -> None:
    class Short(Classifier):
        name = "short"

        def classify_batch(self, requests: Any) -> Any:
            return [SURE] * (len(requests) + 1)

    assert await executor_of(kit.registered(Short())).classify(kit.asking()) == ClassifierAnswer(
        error="invalid"
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that only waits is late after 0.1 s, or ten limits."""
    monkeypatch.setattr("router.classifiers.contract.PATIENCE", 0.1)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that only waits is late after a minute."""
    monkeypatch.setattr("router.classifiers.contract.PATIENCE", 60.0)


async def test_a_call_that_hangs_costs_the_vote_and_later_requests_do_not_wait(
    kit: Any, executor_of: Any, impatient: None
) -> None:
    gate = threading.Event()
    registration = kit.registered(kit.says("c", lambda r: gate.wait(20) and SURE), timeout=0.02)
    executor = executor_of(registration)
    first, waiting = executor.classify(kit.asking()), executor.classify(kit.asking())
    assert await asyncio.gather(first, waiting) == [ClassifierAnswer(error="timeout")] * 2
    assert executor.classify(kit.asking()).result() == ClassifierAnswer(
        error="timeout"
    )  # at once: it is still out
    gate.set()
    await kit.eventually(lambda: executor._call is None)
    assert (await executor.classify(kit.asking())).confidences == {"a": 1.0}
    assert registration.health.errors == 1


async def test_time_without_the_processor_does_not_count(kit: Any, executor_of: Any, patient: None) -> None:
    registration = kit.registered(kit.says("c", lambda r: time.sleep(0.3) or SURE), timeout=0.02)
    assert (await executor_of(registration).classify(kit.asking())).confidences == {"a": 1.0}
    assert registration.health.errors == 0


def computing(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_processor_time_beyond_the_limit_costs_the_vote(
    kit: Any, executor_of: Any, patient: None
) -> None:
    registration = kit.registered(kit.says("c", lambda r: computing(1.0) or SURE), timeout=0.05)
    assert await executor_of(registration).classify(kit.asking()) == ClassifierAnswer(error="timeout")
    assert registration.health.last_error == "timeout"


async def test_each_request_of_a_batch_has_the_limit(kit: Any, executor_of: Any, patient: None) -> None:
    gate = threading.Event()
    says = kit.says("c", lambda r: gate.wait(20) and (computing(0.1) or SURE))
    executor = executor_of(kit.registered(says, timeout=0.4))
    answers = [executor.classify(kit.asking(str(i))) for i in range(9)]
    gate.set()
    assert [answer.error for answer in await asyncio.gather(*answers)] == [""] * 9
    assert says.batches == [1, 8]  # the second call takes twice the limit of one request


async def test_the_wait_behind_another_call_does_not_count(kit: Any, executor_of: Any, patient: None) -> None:
    gate = threading.Event()
    executor = executor_of(kit.registered(kit.says("c", lambda r: gate.wait(20) and SURE), timeout=0.01))
    first, behind = executor.classify(kit.asking()), executor.classify(kit.asking())
    await asyncio.sleep(0.1)
    gate.set()
    assert [answer.error for answer in await asyncio.gather(first, behind)] == ["", ""]


async def test_five_failures_open_the_breaker_and_a_good_call_closes_it(
    kit: Any, executor_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = True
    says = kit.says("c", lambda r: "nonsense" if bad else SURE)
    registration = kit.registered(says)
    monkeypatch.setattr("router.classifiers.isolation.OPEN_SECONDS", 0.05)
    executor = executor_of(registration)
    for _ in range(5):
        await executor.classify(kit.asking())
    assert executor.classify(kit.asking()).result() == ClassifierAnswer(error="breaker-open")
    assert (registration.health.breaker, len(says.batches)) == ("open", 5)
    bad = False
    await asyncio.sleep(0.06)
    assert (await executor.classify(kit.asking())).confidences == {"a": 1.0}
    assert registration.health.breaker == "closed"


async def test_threads_that_never_return_are_capped(
    kit: Any, executor_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.classifiers.contract.PATIENCE", 0.02)
    gate = threading.Event()
    registration = kit.registered(kit.says("hang", lambda r: gate.wait(10) and SURE), timeout=0.002)
    executor = executor_of(registration)
    for stuck in (1, 2, 3):
        assert (await executor.classify(kit.asking())).error == "timeout"
        await kit.eventually(lambda stuck=stuck: registration.health.stuck == stuck)
    assert executor.classify(kit.asking()).result() == ClassifierAnswer(error="disabled")
    assert registration.health.state == "disabled"
    assert sum(t.name == "classifier hang" for t in threading.enumerate()) <= 4
    gate.set()
    await kit.eventually(lambda: registration.health.stuck == 0)
    assert registration.health.state == "ready"
    assert executor._refusal() is None


async def test_a_request_that_is_cancelled_is_not_asked_about(kit: Any, executor_of: Any) -> None:
    gate = threading.Event()
    says = kit.says("c", lambda r: gate.wait(5) and SURE)
    executor = executor_of(kit.registered(says))
    first, gone, last = (executor.classify(kit.asking()) for _ in range(3))
    gone.cancel()
    gate.set()
    await asyncio.gather(first, last)
    assert says.batches == [1, 1]


@pytest.mark.slow
async def test_an_async_classifier_runs_beside_the_loop_and_in_time(kit: Any, executor_of: Any) -> None:
    class Async(Classifier):
        name = "async"

        async def classify_batch(self, requests: Any) -> Any:  # type: ignore[override]
            await asyncio.sleep(5 if requests[0].text == "slow" else 0)
            return [Scores({"loop": float(asyncio.get_running_loop() is main)}) for _ in requests]

    main = asyncio.get_running_loop()
    executor = executor_of(kit.registered(Async(), timeout=0.5, is_async=True))
    assert (await executor.classify(kit.asking("fast"))).confidences == {"loop": 0.0}
    assert (await executor.classify(kit.asking("slow"))).error == "timeout"
    await kit.eventually(lambda: executor._call is None)
    assert (await executor.classify(kit.asking("fast"))).confidences == {"loop": 0.0}


async def test_a_closed_executor_settles_those_who_wait(kit: Any, executor_of: Any) -> None:
    gate = threading.Event()
    executor = executor_of(kit.registered(kit.says("c", lambda r: gate.wait(5) and SURE)))
    waiting = [executor.classify(kit.asking()) for _ in range(2)]
    executor.close()
    assert [a.error for a in await asyncio.gather(*waiting)] == ["disabled"] * 2
    gate.set()


class Learner(Classifier):
    name = "learner"

    def __init__(self) -> None:
        self.known: tuple[str, ...] = ()
        self.fits: list[tuple[str, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.fail: BaseException | None = None
        self.warm = 0

    def warmup(self) -> None:
        self.warm += 1

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.threads.add(threading.get_ident())
        self.gate.wait(5)
        if self.fail:
            raise self.fail
        self.known = tuple(a.name for a in adapters)
        self.fits.append(self.known)

    def classify_batch(self, requests: Any) -> list[Scores | None]:
        return [Scores(dict.fromkeys(self.known, 1.0)) if self.known else None for _ in requests]


async def fitted(fitter: Fitter) -> None:
    while (task := fitter.running) is not None:
        await task


async def test_a_classifier_that_learns_nothing_is_ready_at_once(kit: Any) -> None:
    assert Fitter(kit.registered(kit.says("c"))).ready


async def test_it_is_not_asked_before_its_first_fit(kit: Any, executor_of: Any) -> None:
    learner = Learner()
    executor = executor_of(kit.registered(learner))
    assert executor.classify(kit.asking()).result().error == "not-ready"
    executor.fit([kit.medical])
    await fitted(executor.fitter)
    assert (await executor.classify(kit.asking())).confidences == {"medical": 1.0}
    assert threading.get_ident() not in learner.threads


async def test_a_folder_that_cannot_be_made_costs_only_what_would_be_kept(
    kit: Any, executor_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Keeps(Learner):
        def keep(self, folder: Path) -> None:
            raise AssertionError("there is no folder")

    (tmp_path / "file").write_text("no folder")
    executor = executor_of(kit.registered(Keeps()), keep=tmp_path / "file")
    executor.fit([kit.medical])
    await fitted(executor.fitter)
    assert (await executor.classify(kit.asking())).confidences == {"medical": 1.0}
    assert "what classifier learner learns is not saved" in caplog.text


async def test_the_log_tells_what_a_fit_found_out_about_adapters_that_changed(
    kit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Finds(Learner):
        def findings(self) -> dict[str, str]:
            return {name: f"{len(self.fits) if name == 'medical' else 0} examples" for name in self.known}

    caplog.set_level("INFO")
    fitter = Fitter(kit.registered(Finds()))
    for adapters in ([kit.medical], [kit.medical, kit.legal]):
        fitter.want(adapters)
        await fitted(fitter)
    told = [record.getMessage() for record in caplog.records if "examples" in record.getMessage()]
    assert told == [
        "classifier learner: adapter medical: 1 examples",
        "classifier learner: adapter medical: 2 examples",
        "classifier learner: adapter legal: 0 examples",
    ]
    fitter.want([kit.legal])
    await fitted(fitter)
    assert len([record for record in caplog.records if "examples" in record.getMessage()]) == len(told)


async def test_requests_go_on_with_the_old_fit_during_a_slow_one(kit: Any, executor_of: Any) -> None:
    learner = Learner()
    executor = executor_of(kit.registered(learner))
    executor.fit([kit.medical])
    await fitted(executor.fitter)
    learner.gate.clear()
    executor.fit([kit.legal])
    assert (await executor.classify(kit.asking())).confidences == {"medical": 1.0}
    learner.gate.set()
    await fitted(executor.fitter)
    assert (await executor.classify(kit.asking())).confidences == {"legal": 1.0}
    assert learner.warm == 1


async def test_only_the_newest_set_is_fitted_after_the_one_in_progress(kit: Any) -> None:
    learner = Learner()
    learner.gate.clear()
    fitter = Fitter(kit.registered(learner))
    fitter.want([kit.medical])
    await asyncio.sleep(0.02)
    fitter.want([kit.legal])
    fitter.want([kit.translation])
    learner.gate.set()
    await fitted(fitter)
    fitter.want([kit.translation])
    await fitted(fitter)
    assert learner.fits == [("medical",), ("translation",)]


async def test_a_failed_fit_is_a_status_and_leaves_the_last_one(kit: Any, executor_of: Any) -> None:
    learner = Learner()
    registration = kit.registered(learner)
    executor = executor_of(registration)
    learner.fail = SystemExit("no encoder")
    executor.fit([kit.medical])
    await fitted(executor.fitter)
    assert (registration.health.state, executor.ready) == ("failed", False)
    assert "no encoder" in registration.health.fit_error
    learner.fail = None
    executor.fit([kit.medical])  # the same set again is tried again
    await fitted(executor.fitter)
    assert (registration.health.state, registration.health.fit_error) == ("ready", "")
    learner.fail = ValueError("worse")
    executor.fit([kit.legal])
    await fitted(executor.fitter)
    assert "worse" in registration.health.fit_error
    assert (await executor.classify(kit.asking())).confidences == {"medical": 1.0}
    learner.fail = None
    executor.fit([kit.legal])
    await fitted(executor.fitter)
    assert (await executor.classify(kit.asking())).confidences == {"legal": 1.0}


async def test_a_fit_that_raises_cancellation_is_only_a_fault(kit: Any) -> None:
    learner = Learner()
    learner.fail = asyncio.CancelledError()
    registration = kit.registered(learner)
    fitter = Fitter(registration)
    fitter.want([kit.medical])
    await fitted(fitter)
    assert registration.health.state == "failed"


class Bound(Classifier):
    """Learns from the base and answers with what it learned."""

    name = "bound"

    def __init__(self) -> None:
        self.base: Any = None
        self.fits = 0

    def bind(self, base: Any) -> None:
        assert self.base is None
        self.base = base

    def fit(self, adapters: Any) -> None:
        self.fits += 1
        self.base.hidden([a.name for a in adapters], background=True)

    def classify_batch(self, requests: Any) -> Any:
        return [Scores({"medical": 1.0}) for _ in requests]


async def test_a_classifier_gets_the_base_with_ten_limits(kit: Any, executor_of: Any) -> None:
    timeouts: list[float] = []

    def base_for(timeout: float) -> Any:
        timeouts.append(timeout)
        return FakeBase()

    classifier = Bound()
    executor = executor_of(kit.registered(classifier, timeout=1.5), base_for=base_for)
    assert executor.classify(kit.asking()).result().error == "not-ready"
    for profiles in ([kit.medical], [kit.medical, kit.legal]):
        executor.fit(profiles)
        await kit.eventually(lambda: executor.ready and executor.fitter.running is None)
    assert (timeouts, classifier.fits) == ([15.0], 2)
    assert (await executor.classify(kit.asking())).confidences == {"medical": 1.0}


async def test_without_a_base_it_is_not_asked_and_says_why(kit: Any, executor_of: Any) -> None:
    registration = kit.registered(Bound())
    executor = executor_of(registration)
    executor.fit([kit.medical])
    assert executor.classify(kit.asking()).result().error == "not-ready"
    assert registration.status().state == "failed"
    assert "no engine" in registration.status().fit_error


async def test_what_needs_more_than_the_engine_gives_is_never_asked(kit: Any, executor_of: Any) -> None:
    class Seeing(Bound):
        needs = (HIDDEN_STATES, "sight")

    registration = kit.registered(Seeing())
    executor = executor_of(registration, base_for=lambda timeout: FakeBase())
    executor.fit([kit.medical])
    assert executor.fitter.running is None
    assert executor.classify(kit.asking()).result().error == "disabled"
    assert registration.status().state == "unable"
    assert registration.status().fit_error == "the engine of this base gives no sight"
