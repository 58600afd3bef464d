"""Each plugin of examples/plugins as a file, as a folder and as an installed package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from router.cli.main import run
from router.testing import serving
from router.types import Request, Turn
from tests.cli.tiny import write_adapter

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
NAMES = ("decision_log", "greeter", "http_folder", "mask_email", "urgent_words")
MOST_LINES = 40
Place = Callable[..., None]


PROJECT = """
[project]
name = "examples"
version = "1.0"
[project.entry-points.lora_router]
{entries}
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[tool.setuptools]
py-modules = {names}
packages = ["greeter_stubs"]
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed all examples as a package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in NAMES:
        copy(name, source, name)
    entries = "\n".join(f'{name} = "{name}"' for name in NAMES)
    (source / "pyproject.toml").write_text(PROJECT.format(entries=entries, names=list(NAMES)))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, source], check=True)
    return site


WAYS = ["file", "folder", "package", pytest.param("pip", marks=pytest.mark.long)]


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Have the server and the commands of the current folder load examples, in one of the ways."""
    way: str = request.param
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LORA_ROUTER_BARE", "true")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "plugins").mkdir()
    before = set(sys.modules)

    def place(*names: str) -> None:
        folders = {"file": "plugins", "folder": "plugins/{}", "package": "site"}
        for name in names if way in folders else ():
            copy(name, tmp_path / folders[way].format(name), "__init__" if way == "folder" else name)
        if way in ("package", "pip"):
            installed = request.getfixturevalue("site") if way == "pip" else tmp_path / "site"
            if way == "package":
                declare(names, installed)
            monkeypatch.syspath_prepend(installed)
            monkeypatch.setenv("LORA_ROUTER_INSTALLED_PLUGINS", ",".join(names))

    yield place
    for name in set(sys.modules) - before:
        if name.startswith("greeter_pb2") or name in NAMES:
            del sys.modules[name]


def copy(name: str, folder: Path, stem: str) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(EXAMPLES / f"{name}.py", folder / f"{stem}.py")
    if (stubs := EXAMPLES / f"{name}_stubs").is_dir():
        shutil.copytree(stubs, folder / stubs.name)


def declare(names: tuple[str, ...], site: Path) -> None:
    """Write what an installer writes beside the modules."""
    info = site / "examples-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    entries = "".join(f"{name} = {name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[lora_router]\n{entries}")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_page_names_each() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    found = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert found == sorted(NAMES)
    assert [name for name in found if f"| [{name}.py]({name}.py) |" not in page] == []


async def test_decisions_are_logged(place: Place, tmp_path: Path) -> None:
    place("decision_log")
    async with serving(**{"decision_log.path": "today.jsonl"}) as served:
        answer = await served.client.generate("one two", max_tokens=2)
    (line,) = (tmp_path / "today.jsonl").read_text().splitlines()
    decision = json.loads(line)
    assert (decision["request_id"], decision["adapter"]) == (answer.response_id, "base")
    assert "text" not in decision


async def test_addresses_are_masked(place: Place) -> None:
    place("mask_email")
    async with serving() as served:
        masked = await served.client.generate("write to a.b+c@d.example, now", max_tokens=9)
        raw = await served.client.generate("to a@b.example", raw=True, max_tokens=9)
    assert (masked.text, raw.text) == ("[base] write to [e-mail], now", "[base] to [e-mail]")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that lists the folder `web`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    write_adapter(tmp_path / "web" / "contracts" / "1.2.0")
    (tmp_path / "web" / "contracts" / "1.2.0" / "LICENSE").touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "web")) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"httpdir:http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_adapter_comes_from_a_web_server(
    place: Place, web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place("http_folder")
    command = ["adapters", "add", "--no-base", "--adapters-dir", "adapters"]
    assert run([*command, f"{web}/contracts/1.2.0/"]) == 0
    assert "contracts@1.2.0" in capsys.readouterr().out
    name = "adapter_model.safetensors"
    there, here = (tmp_path / part / "contracts" / "1.2.0" / name for part in ("web", "adapters"))
    assert here.read_bytes() == there.read_bytes()
    assert run([*command, f"{web}/nothing/"]) == 1
    assert "404" in capsys.readouterr().err


def test_words_choose_an_adapter(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from router.cli.plugins import load_plugins

    place("urgent_words")
    monkeypatch.setenv("LORA_ROUTER_URGENT_WORDS__LABEL", "support")
    monkeypatch.setenv("LORA_ROUTER_URGENT_WORDS__WORDS", "now, Fire")
    (registered,) = load_plugins().registrations()
    asked = [Request(text, (Turn("user", text),)) for text in ("There is a FIRE!", "Fireworks?")]
    urgent, other = registered.classifier.classify_batch(asked)
    assert (urgent.values, urgent.evidence, other) == ({"support": 0.95}, "fire", None)


async def test_a_service_greets(place: Place) -> None:
    place("greeter")
    async with serving() as served, grpc.aio.insecure_channel(served.server.address) as channel:
        from greeter_pb2 import Who
        from greeter_pb2_grpc import GreeterStub

        assert (await GreeterStub(channel).Greet(Who(name="Anna"))).text == "Hello, Anna!"
        assert "example.Greeter" in served.server.health.names


def test_all_are_listed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place(*NAMES)
    assert run(["plugins", "list", "--json"]) == 0
    listed = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert [name for name in NAMES if listed[name]["error"] or not listed[name]["hooks"]] == []


def test_the_doctor_finds_nothing_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_ROUTER_PLUGINS_DIR", str(EXAMPLES))
    assert run(["plugins", "doctor"]) == 0
    assert capsys.readouterr().out == f"nothing is wrong with {', '.join(NAMES)}\n"
