from __future__ import annotations

import os
import signal
from threading import Thread

import pytest

from router.training.run import interruptible


def test_first_ctrl_c_asks_second_one_kills_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_works_outside_the_main_thread() -> None:
    seen: list[bool] = []

    def body() -> None:
        with interruptible() as asked:
            seen.append(asked.is_set())

    thread = Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
