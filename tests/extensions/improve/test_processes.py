"""Commands below everything else on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from router.errors import FailedPrecondition
from router.extensions.improve.processes import Limits, run_command

pytestmark = pytest.mark.slow


def test_failed_command_is_named_with_what_it_printed(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"`lora-router adapters train` failed: .*absent.toml"):
        run_command(["adapters", "train", "absent.toml"], Limits(), tmp_path / "log", shown=False)


def test_process_has_the_lowest_priority_and_a_bound_on_its_memory():
    code = (
        "import os, resource; from router.extensions.improve.processes import lower; lower(3000);"
        "print(os.nice(0), resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20,"
        "os.path.exists('/proc/self/autogroup') and open('/proc/self/autogroup').read().split()[-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True
    )
    assert done.stdout.split() in (["19", "3000", "19"], ["19", "3000", "False"])


def test_what_a_command_prints_is_returned(tmp_path):
    assert run_command(["--version"], Limits(), tmp_path / "log", shown=False).startswith("lora-router ")


def test_ctrl_c_reaches_the_command_once(tmp_path, monkeypatch):
    began = []
    popen = subprocess.Popen

    def start(command, **options):
        code = "import time; print('ready', flush=True); time.sleep(60)"
        began.append(popen([sys.executable, "-c", code], **options))
        threading.Thread(target=interrupt).start()
        return began[0]

    def interrupt():
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.raises(KeyboardInterrupt):
        run_command(["anything", "else"], Limits(), tmp_path / "log", shown=False)
    assert began[0].returncode == -signal.SIGINT or began[0].returncode == 1
