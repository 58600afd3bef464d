import subprocess
import sys

import pytest

from tests.commands import all_commands


def commands():
    stack = [("lora-router", all_commands())]
    while stack:
        name, command = stack.pop()
        children = getattr(command, "commands", None)
        if children:
            stack += [(f"{name} {child}", found) for child, found in children.items()]
        else:
            yield name, command


EXPECTED = {
    "adapters": {
        "list",
        "show",
        "load",
        "unload",
        "default",
        "add",
        "validate",
        "convert",
        "digest",
        "keygen",
        "merge",
        "sign",
        "new",
        "train",
        "evaluate",
        "learning-curve",
    },
    "experiments": {
        "create",
        "list",
        "show",
        "start",
        "update",
        "report",
        "watch",
        "record",
        "stop",
        "promote",
        "rollback",
        "delete",
        "aa",
        "plan",
        "export",
        "hash-units",
    },
    "replicas": {"list", "resize", "replace", "drain"},
    "plugins": {"list", "doctor", "new"},
    "models": {"fetch", "list"},
    "audit": {"show", "verify"},
    "clients": {"new", "list", "check", "revoke"},
    "config": {"show"},
    "route": {
        *("PROMPT", "calibrate", "curve", "evaluate", "diff", "learn", "correct"),
        *("corrections list", "corrections clear"),
    },
}


def test_the_commands_are_the_documented_ones():
    names = {name.removeprefix("lora-router ") for name, _ in commands()}
    nested = {f"{group} {name}" for group, found in EXPECTED.items() for name in found}
    assert names == {"serve", "ask", "bench", "replica"} | nested


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_an_example_and_explains_its_options(name, command):
    assert f"\n  {name.removesuffix(' PROMPT')}" in command.help
    assert "Example" in command.help
    for option in command.params:
        assert getattr(option, "help", "") or option.name in ("context", "help"), option.name


@pytest.mark.parametrize(
    "name",
    [
        "adapters list",
        "adapters show",
        "adapters validate",
        "experiments list",
        "experiments show",
        "experiments report",
        "experiments watch",
        "experiments aa",
        "plugins list",
        "plugins doctor",
        "models list",
        "config show",
        "route PROMPT",
        "route calibrate",
        "route curve",
        "route evaluate",
        "route diff",
        "ask",
    ],
)
def test_what_lists_or_shows_has_json(name):
    options = {
        option
        for found, command in commands()
        if found.endswith(name)
        for p in command.params
        for option in p.opts
    }
    assert "--json" in options


@pytest.mark.parametrize("group", ["", *(sorted(EXPECTED.keys() - {"route"}))])
def test_a_group_alone_prints_its_help(cli, group):
    done = cli(*filter(None, [group]))
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
