import json
import subprocess
import sys

import pytest

from router import __version__


@pytest.fixture
def plugins(own_folder, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_BARE", "yes")
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


@pytest.mark.slow
def test_a_new_plugin_works_and_so_does_its_test(cli, own_folder, monkeypatch):
    done = cli("plugins", "new", "lease-law", "--adapter", "legal")
    assert done.code == 0
    assert "wrote plugins/lease_law.py" in done.out
    assert len((own_folder / "plugins" / "lease_law.py").read_text().splitlines()) <= 18
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_lease_law.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=own_folder)
    assert "passed" in ran.stdout, ran.stdout
    assert "failed" not in ran.stdout
    assert int(ran.stdout.split(" passed")[0].split()[-1]) > 2
    monkeypatch.setenv("LORA_ROUTER_PLUGINS_DIR", "plugins")
    doctor = cli("plugins", "doctor")
    assert (doctor.code, doctor.out) == (0, "nothing is wrong with lease_law\n")


def test_nothing_is_overwritten(cli, own_folder):
    assert cli("plugins", "new", "one").code == 0
    (own_folder / "plugins" / "one.py").write_text("mine")
    done = cli("plugins", "new", "one")
    assert done.code == 1
    assert "plugins/one.py exists already" in done.err
    assert (own_folder / "plugins" / "one.py").read_text() == "mine"


def test_names_that_are_no_names_are_refused(cli, own_folder):
    for name in ("Upper", "a b", "../up", "-x", "1st", "a.b", "x" * 41, "é"):
        assert cli("plugins", "new", "--", name).code == 2, name
    assert not list(own_folder.iterdir())


def test_the_test_must_not_become_a_plugin(cli, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_PLUGINS_DIR", "tests")
    assert cli("plugins", "new", "one").code == 2


def test_list_marks_what_is_built_in(cli, own_folder):
    (own_folder / "plugins").mkdir()
    write(own_folder / "plugins", "def classify_batch(self, requests): return [None] * len(requests)")
    found = {p["name"]: p["built_in"] for p in json.loads(cli("plugins", "list", "--json").out)}
    assert found["it"] is False
    assert found["examples"] is True


def test_list_shows_classifiers_and_what_is_broken(cli, plugins):
    write(plugins, "def classify_batch(self, requests): return [None] * len(requests)")
    (plugins / "broken.py").write_text("1 / 0\n")
    header, broken, it, *built_in = cli("plugins", "list").out.splitlines()
    columns = ["PLUGIN", "STATE", "VERSION", "HOOKS", "CLASSIFIER", "PRIORITY", "TIMEOUT", "SOURCE", "NOTE"]
    assert header.split() == columns
    (names,) = (line.split() for line in built_in if line.startswith("vllm_names "))
    assert names[:3] == ["vllm_names", "loaded", __version__]
    assert "on_startup" in " ".join(names)
    assert broken.split()[:2] == ["broken", "broken"]
    assert "ZeroDivisionError" in broken
    assert it.split()[:6] == ["it", "loaded", "it", "100", "50", "ms"]
    found = {p["name"]: p for p in json.loads(cli("plugins", "list", "--json").out)}
    assert found["it"]["classifiers"][0]["timeout_ms"] == 50
    assert found["broken"]["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def classify_batch(self, requests): return [1] * len(requests)", "invalid"),
        ("def fit(self, adapters): raise ValueError\ndef classify_batch(self, requests): ...", "ValueError"),
    ],
)
def test_doctor_tells_what_is_wrong(cli, plugins, body, said):
    write(plugins, body)
    done = cli("plugins", "doctor", "--json")
    assert done.code == 1
    assert any(said in f["message"] for f in json.loads(done.out) if f["level"] == "error")
    table = cli("plugins", "doctor").out.splitlines()
    assert table[0].split() == ["PLUGIN", "CLASSIFIER", "CHECK", "WHAT", "IS", "WRONG"]
    assert table[1].split()[:3] == ["error", "it", "it"]


def test_a_warning_alone_is_no_failure(cli, plugins):
    write(plugins, "def classify_batch(self, requests): return [None] * len(requests)")
    text = (plugins / "it.py").read_text()
    (plugins / "it.py").write_text(text + "\n@hookimpl\ndef register_clasifiers(register): ...\n")
    done = cli("plugins", "doctor")
    assert done.code == 0, done.out
    assert "warning" in done.out


def test_a_folder_that_is_not_there_is_named(cli, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_PLUGINS_DIR", "absent")
    done = cli("plugins", "list")
    assert done.code == 2
    assert "absent is no folder" in done.err


def test_an_installed_plugin_that_is_not_named_is_listed_with_how_to_load_it(
    cli, plugins, tmp_path, monkeypatch
):
    info = tmp_path / "site" / "shouting-1.4.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.4\n")
    (info / "entry_points.txt").write_text("[lora_router]\nshout = no_such_module\n")
    monkeypatch.syspath_prepend(info.parent)
    listed = " ".join(cli("plugins", "list").out.split())
    assert "shout off" in listed
    assert "comes with the package shouting; name it in installed_plugins to load it" in listed
    monkeypatch.setenv("LORA_ROUTER_INSTALLED_PLUGINS", "shout")
    assert "shout broken" in " ".join(cli("plugins", "list").out.split())


def test_without_a_server_the_folder_is_read_and_the_note_says_so(cli, plugins, monkeypatch):
    write(plugins, "def classify_batch(self, requests): return [None] * len(requests)")
    monkeypatch.setenv("LORA_ROUTER_LISTEN", "127.0.0.1:1")
    done = cli("plugins", "list")
    assert (done.code, done.out.splitlines()[1].split()[:2]) == (0, ["it", "loaded"])
    assert "no server answers at 127.0.0.1:1" in done.err
    assert "a server that is started here loads these" in done.err


def test_a_server_that_is_named_and_does_not_answer_is_an_error(cli, plugins):
    done = cli("plugins", "list", "--server", "127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "no server answers at 127.0.0.1:1" in done.err


def test_a_server_says_what_it_has_and_not_what_lies_here(cli, plugins, remote):
    write(plugins, "def classify_batch(self, requests): return [None] * len(requests)")
    header, words, broken = cli("plugins", "list").out.splitlines()
    assert header.split()[:2] == ["PLUGIN", "STATE"]
    assert words.split()[:6] == ["words", "loaded", "words", "10", "20", "ms"]
    assert words.endswith("built-in  words is failed: no examples")
    assert broken.split()[:2] == ["new", "broken"]
    assert "SyntaxError" in broken
    found = {p["name"]: p for p in json.loads(cli("plugins", "list", "--json").out)}
    assert found["words"]["classifiers"][0]["problem"] == "no examples"
