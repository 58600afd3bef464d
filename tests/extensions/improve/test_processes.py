"""Commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from router.errors import FailedPrecondition
from router.extensions.improve.processes import run_command

pytestmark = pytest.mark.slow


def test_failed_command_is_named_with_what_it_printed():
    with pytest.raises(FailedPrecondition, match=r"`lora-router adapters train` failed: .*absent.toml"):
        run_command(["adapters", "train", "absent.toml"])


def test_what_a_command_prints_is_returned():
    assert run_command(["--version"]).startswith("lora-router ")


@pytest.fixture
def other_command(monkeypatch):
    """Runs Python's code instead of the command's words; the process that was started is in the list."""
    began, popen = [], subprocess.Popen

    def set_code(code, started=lambda: None):
        def start(command, **options):
            began.append(popen([*command[:3], sys.executable, "-c", code], **options))
            started()
            return began[0]

        monkeypatch.setattr("subprocess.Popen", start)
        return began

    return set_code


def test_command_has_the_lowest_priority(other_command):
    other_command("import os; print(os.nice(0))")
    assert run_command(["anything", "else"]).strip() == "19"


def test_ctrl_c_ends_the_command(other_command, tmp_path):
    ready = tmp_path / "ready"
    os.mkfifo(ready)

    def interrupt():
        ready.read_text()  # until the command runs
        os.kill(os.getpid(), signal.SIGINT)

    code = f"import time; open({str(ready)!r}, 'w').close(); time.sleep(600)"
    began = other_command(code, threading.Thread(target=interrupt).start)
    with pytest.raises(KeyboardInterrupt):
        run_command(["anything", "else"])
    assert began[0].returncode in (1, -signal.SIGINT)
