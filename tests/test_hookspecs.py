"""Each hook by a small plugin file, through the real server with the fake engine where one is needed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from router import hookimpl
from router.access.clients import hash_of
from router.cli.engines import engine_of
from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.server.app import ServerApp
from tests.cli.tiny import write_adapter
from tests.hooks import CHECK, HEAD, ROOT, Write, check_of, got, loaded, serving, status_of, write
from tests.server.helpers import until

__all__ = ["write"]


# -- what is found


def test_a_folder_is_a_plugin_with_modules_of_its_own(write: Write, tmp_path: Path) -> None:
    write("greet/words.py", "WORD = 'hello'\n")
    write("greet/__init__.py", "from .words import WORD\n" + textwrap.dedent(CHECK.format("WORD")))
    host = loaded()
    assert (status_of(host, "greet").source, check_of(host, "greet")) == ("file", "hello")
    write("greet/words.py", "WORD = 'good day'\n")
    host.refresh()
    assert check_of(host, "greet") == "good day"
    assert not list(tmp_path.rglob("__pycache__"))


def test_built_in_plugins_are_listed_as_all_others(write: Write) -> None:
    write("one.py", CHECK.format("None"))
    found = {status.name: status for status in loaded().status()}
    names = found["vllm_names"]
    assert (names.source, names.hooks) == ("built-in", ("on_startup", "register_settings"))
    assert (found["one"].source, found["one"].hooks) == ("file", ("register_checks",))


def test_a_core_without_extensions_does_without_them(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("one.py", CHECK.format("None"))
    monkeypatch.setattr(
        "router.plugins.host.built_in_modules", lambda: {"router.extensions.absent": Path("absent.py")}
    )
    host = loaded()
    assert "ModuleNotFoundError" in status_of(host, "absent").error
    with pytest.raises(ConfigError, match=r"engine .* is 'echo', and there are torch"):
        engine_of(Settings(engine="echo"), host)


# -- commands


COMMAND = """
@hookimpl
def register_commands(app):
    @app.command()
    def greet(name: str):
        "Greet somebody."
        print("hello", name)

@hookimpl
def register_classifiers(register):
    pass
"""


def test_a_command_of_a_plugin_runs_and_is_in_the_help(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from router.cli.main import run

    write("greeting.py", COMMAND)
    write("broken.py", "raise RuntimeError('register_commands')")
    write("quiet.py", "raise RuntimeError('is not imported for the command line')")
    assert run(["greet", "world"]) == 0
    out = capsys.readouterr()
    assert "hello world" in out.out
    assert "plugin broken is broken" in out.err
    assert "quiet" not in out.err
    run(["--help"])
    assert "Greet somebody." in capsys.readouterr().out
    assert run(["greet"]) == 2


COUNT = """
from pathlib import Path

import typer

from router import hookimpl

@hookimpl
def register_commands(app):
    adapters = typer.Typer()

    @adapters.command()
    def count(folder: Path = Path("adapters")):
        "Count the adapter folders here."
        print(len(list(folder.glob("*/adapter_config.json"))))

    app.add_typer(adapters, name="adapters")
"""


def test_a_plugin_adds_a_command_to_a_group(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from router.cli.main import run

    write("count.py", COUNT)
    write_adapter(tmp_path / "adapters" / "contracts")
    assert run(["adapters", "count"]) == 0
    assert capsys.readouterr().out == "1\n"
    run(["adapters", "--help"])
    shown = capsys.readouterr().out
    assert "Count the adapter folders here." in shown
    assert "List the adapters of a server." in shown


def test_a_fault_of_a_built_in_plugin_costs_its_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from router.cli.main import run

    @hookimpl
    def register_commands(app: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("router.extensions.training.register_commands", register_commands)
    run(["adapters", "--help"])
    done = capsys.readouterr()
    assert done.err == "commands of the plugin training are left out: out of order\n"
    assert "validate" in done.out
    assert "  train " not in done.out
    assert run(["route", "calibrate", "--help"]) == 0


# -- engines and adapter sources


ENGINE = """
from router.engine.fake import FakeEngine

@hookimpl
def register_engines(register):
    register("echo", lambda settings: FakeEngine(max_running=settings.max_running))
"""


def test_an_engine_of_a_plugin_is_picked_by_its_name(write: Write) -> None:
    write("echo.py", ENGINE)
    engine, base = engine_of(Settings(engine="echo", max_running=7), loaded())
    assert isinstance(engine, FakeEngine)
    assert (engine.max_running, base) == (7, None)
    with pytest.raises(ConfigError, match="there are echo, torch"):
        engine_of(Settings(engine="eco"), loaded())


def test_an_engine_that_cannot_be_made_is_told(write: Write) -> None:
    write("echo.py", ENGINE.replace("FakeEngine(max_running=settings.max_running)", "1 / 0"))
    with pytest.raises(ConfigError, match="the engine echo cannot be made: ZeroDivisionError"):
        engine_of(Settings(engine="echo"), loaded())


SOURCE = """
from router.sources.source import LocalFolder

@hookimpl
def register_adapter_sources(register):
    register("shelf", lambda text, inside: LocalFolder(Path("shelf") / text.removeprefix("shelf:"), inside))
"""


def test_an_adapter_comes_from_a_source_of_a_plugin(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from router.cli.main import run

    write("shelf.py", "from pathlib import Path\n" + SOURCE)
    write_adapter(tmp_path / "shelf" / "contracts")
    assert run(["adapters", "add", "shelf:contracts", "--no-base", "--adapters-dir", "adapters"]) == 0
    assert "contracts@" in capsys.readouterr().out
    assert run(["adapters", "add", "shelve:contracts"]) == 2


# -- services, routes and authenticators


SERVICE = """
import grpc
from google.protobuf.wrappers_pb2 import StringValue
from router.serving import INFER, ServiceSpec

class Echo:
    async def Say(self, request, call):
        return StringValue(value="NAME " + request.value)

def add(servicer, server):
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Say, StringValue.FromString, StringValue.SerializeToString
    )
    server.add_registered_method_handlers("example.Echo", {"Say": handler})

@hookimpl
def register_service(register):
    register(ServiceSpec(add, Echo(), {"/example.Echo/Say": INFER}))
"""
ROUTE = """
from router.server.http import Route
from router.server.policy import OBSERVE

async def hello(request, call):
    return {"hello": "NAME", "to": call.path_parameter("who")}

@hookimpl
async def register_http(register):
    register([Route("GET", "/hello/{who}", hello)], {"GET /hello/{who}": OBSERVE})
"""


async def said_by(app: ServerApp, text: str) -> str:
    """What a method of a plugin says."""
    async with grpc.aio.insecure_channel(app.address) as channel:
        say = channel.unary_unary("/example.Echo/Say", StringValue.SerializeToString, StringValue.FromString)
        return str((await say(StringValue(value=text))).value)


@pytest.mark.parametrize("source", ["file", "folder", "package", "built-in"])
async def test_a_service_and_a_route_are_served(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    both = (SERVICE + ROUTE).replace("NAME", source)
    settings: dict[str, Any] = {"http_listen": "127.0.0.1:0"}
    if source == "file":
        write("doors.py", both)
    elif source == "folder":
        write("doors/__init__.py", both)
    else:
        (tmp_path / "some_doors.py").write_text(HEAD + both)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "plugins").mkdir()
    if source == "package":
        info = tmp_path / "doors-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doors\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[lora_router]\ndoors = some_doors\n")
        settings["installed_plugins"] = "doors"
    elif source == "built-in":
        monkeypatch.setattr(
            "router.plugins.host.built_in_modules", lambda: {"some_doors": Path("some_doors.py")}
        )
    try:
        async with serving(**settings) as (served, _):
            assert await said_by(served.server, "hi") == f"{source} hi"
            answer = (await got(served.server, "/hello/you")).json()
            assert answer == {"hello": source, "to": "you"}
            assert "example.Echo" in served.server.health.names
    finally:
        sys.modules.pop("some_doors", None)


async def test_a_route_of_a_plugin_replaces_one_of_the_http_address_itself(write: Write) -> None:
    write("front.py", ROUTE.replace("hello/{who}", "health").replace('call.path_parameter("who")', '"all"'))
    async with serving(http_listen="127.0.0.1:0") as (served, _):
        assert (await got(served.server, "/health")).json() == {"hello": "NAME", "to": "all"}
        assert (await got(served.server, "/version")).status_code == 200


async def test_a_service_that_cannot_work_is_not_serving_and_the_rest_is(write: Write) -> None:
    problem = "{'/example.Echo/Say': INFER}, problem=lambda: 'it is too loud'"
    write("loud.py", SERVICE.replace('{"/example.Echo/Say": INFER}', problem))
    async with serving() as (served, _):
        async with grpc.aio.insecure_channel(served.server.address) as channel:
            health = HealthStub(channel)
            states = [
                (await health.Check(HealthCheckRequest(service=name))).status for name in ("", "example.Echo")
            ]
        assert states == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]
        assert served.server.health.degraded == ["it is too loud"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (SERVICE.replace('"/example.Echo/Say": INFER', ""), "{'/example.Echo/Say': Policy(Role.INFER)}"),
        (ROUTE.replace('"GET /hello/{who}": OBSERVE', ""), "{'GET /hello/{who}': Policy(Role.INFER)}"),
        (ROUTE.replace("OBSERVE}", "3}"), "the row of GET /hello/{who} is a int: write Policy(Role.INFER)"),
        (ROUTE.replace("{who}", "{who:odd}", 1), "Unknown path convertor 'odd'"),
        (
            SERVICE.replace("example.Echo", "grpc.health.v1.Health").replace("Say", "Check"),
            "the server itself",
        ),
        (
            SERVICE.replace("register(ServiceSpec", "register(3); (ServiceSpec"),
            "3 is no service: write",
        ),
        (ROUTE.replace("[Route", "[3, Route"), "3 is no route: write router.server.http.Route"),
    ],
)
async def test_what_cannot_be_served_costs_its_plugin_alone(write: Write, body: str, says: str) -> None:
    write("bad.py", body)
    write("good.py", ROUTE.replace("hello/", "good/"))
    async with serving(http_listen="127.0.0.1:0") as (served, client):
        assert (await client.generate("hello", max_tokens=2)).text
        assert (await got(served.server, "/good/you")).status_code == 200
        assert (await got(served.server, "/hello/you")).status_code == 404
        (flaw,) = served.server.health.degraded
        assert flaw.startswith("plugin bad: register_")
        assert says in flaw
        assert "bad.py" in flaw


async def test_what_two_plugins_register_is_the_firsts(write: Write) -> None:
    write("first.py", SERVICE + ROUTE)
    write("second.py", ROUTE.replace("{who}", "{whom}"))
    write("third.py", SERVICE)
    async with serving(http_listen="127.0.0.1:0") as (served, _):
        assert await said_by(served.server, "hi") == "NAME hi"
        flaws = sorted(served.server.health.degraded)
        assert "GET /hello/{whom} of plugin 'second' is refused: plugin 'first' serves it" in flaws[0]
        assert "/example.Echo/Say of plugin 'third' is refused: plugin 'first' serves it" in flaws[1]


CLIENTS = """
[[client]]
id = "web"
token_sha256 = ["{}"]
roles = ["infer", "observe"]
adapters = ["*"]
"""


async def test_an_authenticator_says_who_calls_and_a_fault_lets_nobody_in(
    write: Write, tmp_path: Path
) -> None:
    write(
        "keys.py",
        """
        from router.access.access import Authenticator, Named

        class Keys(Authenticator):
            async def authenticate(self, credentials):
                return Named({"one": "web", "two": "nobody"}[credentials.header("x-key")])

        @hookimpl
        def register_authenticators(register):
            register(Keys())
        """,
    )
    write("bad.py", "@hookimpl\ndef register_authenticators(register):\n    register(3)\n")
    write("who.py", ROUTE.replace('"NAME"', "call.client.id"))
    (tmp_path / "clients.toml").write_text(CLIENTS.format(hash_of("lrk_web_" + "a" * 43)))
    (tmp_path / "clients.toml").chmod(0o600)
    clients = {"clients": tmp_path / "clients.toml", "http_listen": "127.0.0.1:0"}
    async with serving(**clients) as (served, _):
        app = served.server
        assert (await got(app, "/hello/you", **{"x-key": "one"})).json()["hello"] == "web"
        for key in ("two", "three"):
            assert (await got(app, "/hello/you", **{"x-key": key})).status_code == 401
        token = {"authorization": "Bearer lrk_web_" + "a" * 43}
        assert (await got(app, "/hello/you", **token)).json()["hello"] == "web"
        flaws = sorted(app.health.degraded)
        assert "bad: register_authenticators: TypeError: 3 is no authenticator" in flaws[0]
        assert "keys: register_authenticators: KeyError" in flaws[1]


# -- docs/hooks.md


def example(name: str) -> str:
    """The block of docs/hooks.md that begins with `# plugins/NAME`."""
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```python\n(# plugins/{name}\n.*?)```", page, re.DOTALL)
    return block


async def test_the_example_of_the_page_logs_and_counts(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from router.cli.main import run

    write("decisions.py", example("decisions.py"))
    async with serving(**{"decisions.file": "today.jsonl"}) as (_, client):
        await client.generate("one two", max_tokens=2)
    (line,) = (tmp_path / "today.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "one two"
    monkeypatch.setenv("LORA_ROUTER_DECISIONS__FILE", "today.jsonl")
    assert await asyncio.to_thread(run, ["decided"]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["1", "base"]


async def test_the_check_of_the_page_counts(write: Write) -> None:
    write("slow.py", example("slow.py").replace("> 10", "> -1"))
    async with serving() as (served, client):
        await client.generate("one two", max_tokens=2)
        told = ["plugin slow: 1 answers took more than 10 s"]
        await until(lambda: served.server.health.degraded == told, 5)


async def test_the_mask_of_the_page_masks(write: Write) -> None:
    write("mask.py", example("mask.py"))
    async with serving() as (_, client):
        answer = await client.generate("write to a.b@c.example now", max_tokens=32)
        assert "write to [e-mail] now" in answer.text


def test_the_test_of_the_page_passes(write: Write) -> None:
    for name in ("decisions.py", "mask.py"):
        write(name, example(name))
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import asyncio\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    names["test_addresses_are_masked"]()


async def test_the_doors_of_the_page_are_open(write: Write, tmp_path: Path) -> None:
    for name in ("hello.py", "api_keys.py"):
        write(name, example(name))
    (tmp_path / "clients.toml").write_text(CLIENTS.format("0" * 64))
    (tmp_path / "clients.toml").chmod(0o600)
    settings = {"clients": tmp_path / "clients.toml", "api_keys.keys": '{"web": "secret"}'}
    async with serving(http_listen="127.0.0.1:0", **settings) as (served, _):
        app = served.server
        answer = await got(app, "/hello/anna", **{"x-api-key": "secret"})
        assert answer.json() == {"hello": "anna", "from": "web"}
        assert (await got(app, "/hello/anna", **{"x-api-key": "Secret"})).status_code == 401
