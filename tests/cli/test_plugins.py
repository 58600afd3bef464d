import json
import subprocess
import sys

import pytest


@pytest.fixture
def plugins(own_folder):
    folder = own_folder / "plugins"
    folder.mkdir()
    return folder


HEAD = """
from router import hookimpl
from router.routing import Classifier, Scores

class It(Classifier):
    name = "it"
    {body}

@hookimpl
def register_classifiers(register):
    register(It(), timeout_ms={timeout})
"""


def write(folder, body, timeout=50):
    body = body.replace("\n", "\n    ")
    (folder / "it.py").write_text(HEAD.format(body=body, timeout=timeout))


def test_a_new_plugin_works_and_so_does_its_test(cli, own_folder):
    done = cli("plugins", "new", "lease-law", "--adapter", "legal")
    assert done.code == 0
    assert "wrote plugins/lease_law.py" in done.out
    assert len((own_folder / "plugins" / "lease_law.py").read_text().splitlines()) <= 18
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_lease_law.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=own_folder)
    assert "2 passed" in ran.stdout, ran.stdout
    doctor = cli("plugins", "doctor")
    assert doctor.code == 0, doctor.out
    assert "WRONG" not in doctor.out


def test_nothing_is_overwritten_unless_forced(cli, own_folder):
    assert cli("plugins", "new", "one").code == 0
    (own_folder / "plugins" / "one.py").write_text("mine")
    done = cli("plugins", "new", "one")
    assert done.code == 1
    assert "plugins/one.py exists already" in done.err
    assert (own_folder / "plugins" / "one.py").read_text() == "mine"
    assert cli("plugins", "new", "one", "--force").code == 0


@pytest.mark.parametrize("name", ["Upper", "a b", "../up", "-x", "1st", "a.b", "x" * 41, "é"])
def test_names_that_are_no_names_are_refused(cli, own_folder, name):
    assert cli("plugins", "new", "--", name).code == 2
    assert not list(own_folder.iterdir())


def test_the_test_must_not_become_a_plugin(cli):
    assert cli("plugins", "new", "one", "--tests-dir", "plugins").code == 2


def test_list_shows_classifiers_and_what_is_broken(cli, plugins):
    write(plugins, "def classify_batch(self, requests): return [None] * len(requests)")
    (plugins / "broken.py").write_text("1 / 0\n")
    header, broken, it = cli("plugins", "list").out.splitlines()
    assert header.split() == ["PLUGIN", "STATE", "CLASSIFIER", "PRIORITY", "TIMEOUT", "SOURCE", "NOTE"]
    assert broken.split()[:2] == ["broken", "broken"]
    assert "ZeroDivisionError" in broken
    assert it.split()[:6] == ["it", "loaded", "it", "100", "50", "ms"]
    found = {p["name"]: p for p in json.loads(cli("plugins", "list", "--json").out)}
    assert found["it"]["classifiers"][0]["timeout_ms"] == 50
    assert found["broken"]["error"]


@pytest.mark.parametrize(
    ("body", "timeout", "check"),
    [
        ("def classify_batch(self, requests): return [1] * len(requests)", 50, "answers"),
        ("def classify_batch(self, requests): raise KeyError('x')", 50, "answers"),
        ("def classify_batch(self, requests): return [Scores({'a': 2.0}) for r in requests]", 50, "answers"),
        (
            "def classify_batch(self, requests): return [Scores({'a': 1 / len(requests)}) for r in requests]",
            50,
            "batch equals single calls",
        ),
        (
            "calls = 0\ndef classify_batch(self, requests):\n    self.calls += 1\n"
            "    return [Scores({'a': 1 / self.calls}) for r in requests]",
            50,
            "same answer twice",
        ),
        (
            "def classify_batch(self, requests):\n    import time\n    time.sleep(0.002)\n"
            "    return [None] * len(requests)",
            1,
            "speed",
        ),
        (
            "def fit(self, adapters): raise ValueError('no')\n"
            "def classify_batch(self, requests): return [None] * len(requests)",
            50,
            "fit",
        ),
    ],
)
def test_doctor_finds_what_is_wrong(cli, plugins, body, timeout, check):
    write(plugins, body, timeout)
    done = cli("plugins", "doctor", "--json")
    assert done.code == 1
    assert check in [c["check"] for c in json.loads(done.out) if not c["ok"]]


def test_doctor_calls_an_async_classifier(cli, plugins):
    write(plugins, "async def classify_batch(self, requests): return [None] * len(requests)", 1000)
    assert cli("plugins", "doctor").code == 0


def test_doctor_fits_with_the_adapters_here(cli, plugins, own_folder):
    medical = own_folder / "adapters" / "medical"
    medical.mkdir(parents=True)
    (medical / "adapter.toml").write_text('[adapter]\nname = "medical"\n[routing]\nkeywords = ["icd"]\n')
    (medical / "adapter_config.json").write_text("{}")
    body = (
        "def fit(self, adapters):\n    assert [a.keywords for a in adapters] == [('icd',)]\n"
        "def classify_batch(self, requests): return [None] * len(requests)"
    )
    write(plugins, body)
    done = cli("plugins", "doctor")
    assert done.code == 0, done.out


def test_a_folder_that_is_not_there_is_named(cli):
    done = cli("plugins", "list", "--plugins-dir", "absent")
    assert done.code == 2
    assert "absent is no folder" in done.err
