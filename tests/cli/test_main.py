import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("group", [(), ("adapters",)])
def test_a_group_alone_prints_its_help(cli, group):
    done = cli(*group)
    assert done.code == 0
    assert "Commands:" in done.out


FIT = """
import sys, threading, torch
from router.cli import main

def fit():
    while True:
        torch.randn(600, 600) @ torch.randn(600, 600)

threading.Thread(target=fit, daemon=True).start()
sys.argv = ["lora-router", "--version"]
main.main()
"""


@pytest.mark.slow
def test_a_thread_inside_a_library_does_not_abort_the_process_at_its_end():
    """A classifier is fitted when the server ends: torch aborted the process (134) as its thread died."""
    done = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lora-router ")


DEMO = "from router.cli.__main__ import main; main('examples.demo')"  # as the Makefile starts it


@pytest.mark.parametrize("command", [["-m", "router.cli"], ["-c", DEMO]], ids=["lora-router", "make demo"])
def test_ctrl_c_while_it_is_imported_leaves_no_traceback(command, tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(("group", "name"), [((), "audit"), (("experiments",), "aa")], ids=["audit", "aa"])
def test_what_is_seldom_needed_is_out_of_the_first_view(cli, group, name):
    listed = cli(*group, "--help").out.partition("Commands:")[2]
    assert f"\n  {name} " not in listed
    assert cli(*group, name, "--help").code == 0
