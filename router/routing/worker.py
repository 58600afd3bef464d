"""One thread that runs one classifier's calls, one after the other, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from router.plugins.registration import Registration
from router.plugins.threads import post
from router.routing.faults import place
from router.routing.scores import Answer, answers
from router.types import Request, VoteError

log = logging.getLogger(__name__)
Done = Callable[[tuple[Answer, ...], str], object]
_Job = tuple[tuple[Request, ...], Done]


class Worker:
    """Runs `classify_batch`; answers come back on `loop`.

    A daemon thread: a call that hangs does not keep the process alive. The thread survives whatever the
    classifier raises, SystemExit included. Only what ends the whole process (os._exit, a crash in C) is
    not survivable.
    """

    def __init__(self, registration: Registration, loop: asyncio.AbstractEventLoop) -> None:
        self._registration, self._loop = registration, loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        name = f"classifier {registration.name}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, requests: Sequence[Request], done: Done) -> None:
        """Queue a call; `done(answers, fault)` runs on the loop, `fault` empty if the call went well."""
        self._jobs.put((tuple(requests), done))

    def stop(self) -> None:
        """End the thread after the calls queued."""
        self._jobs.put(None)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            while (job := self._jobs.get()) is not None:
                requests, done = job
                result, fault = self._call(requests, runner)
                if not post(self._loop, partial(done, result, fault)):
                    return

    def _call(self, requests: tuple[Request, ...], runner: asyncio.Runner) -> tuple[tuple[Answer, ...], str]:
        """The answers and, if the classifier failed, its kind and place; never text of the exception."""
        try:
            result = answers(self._classify(requests, runner), len(requests))
        except TimeoutError:
            return (Answer(error=VoteError.TIMEOUT),) * len(requests), "timeout"
        except BaseException as error:
            log.warning("classifier %s raised %s", self._registration.name, place(error))
            return (Answer(error=VoteError.RAISED),) * len(requests), f"raised {place(error)}"
        invalid = any(answer.error for answer in result)
        return result, "invalid scores" if invalid else ""

    def _classify(self, requests: tuple[Request, ...], runner: asyncio.Runner) -> object:
        classifier = self._registration.classifier
        if not self._registration.is_async:
            return classifier.classify_batch(requests)

        async def call() -> object:
            async with asyncio.timeout(self._registration.timeout):
                return await classifier.classify_batch(requests)  # type: ignore[misc]

        return runner.run(call())
