"""Each hook by a small plugin file, through the real server with the fake engine where one is needed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from router import hookimpl, testing
from router.access.clients import hash_of
from router.cli.engines import engine_of
from router.cli.plugins import host_of
from router.cli.settings import load_settings
from router.client import AsyncClient
from router.config import Settings
from router.engine import TextEngine
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.plugins import PluginHost
from router.server.app import ServerApp
from router.testing import Served
from tests.cli.tiny import write_adapter
from tests.server.helpers import until

ROOT = Path(__file__).parents[1]
Write = Callable[..., Path]
HEAD = "from router import hookimpl\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write plugins/NAME with a body below `from router import hookimpl`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def write(name: str, body: str) -> Path:
        path = tmp_path / "plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + textwrap.dedent(body))
        return path

    return write


def loaded(**settings: Any) -> PluginHost:
    """The plugins of a server in the current folder."""
    found = load_settings({"plugins_dir": (Path("plugins"),), **settings})
    host = host_of(found)
    host.refresh()
    return host


def status_of(host: PluginHost, name: str) -> Any:
    return next(status for status in host.status() if status.name == name)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Served, AsyncClient]]:
    """A server in the current folder, with its plugins; a client of it."""
    async with testing.serving(gate="off", **settings) as served:
        yield served, served.client


# -- settings


SETTINGS = """
from pydantic import BaseModel

class Table(BaseModel):
    path: str = "log"
    most: int = 3
    names: list[str] = []

@hookimpl
def register_settings(register):
    register(Table)

@hookimpl
def register_checks(register, settings):
    register(lambda: f"{settings.path} {settings.most} {settings.names}")
"""


def check_of(host: PluginHost, name: str) -> Any:
    (check,) = next(loaded for loaded, plugin in host.running().items() if plugin.name == name).checks
    return check()


def test_settings_come_from_flag_environment_file_and_default(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("my_log.py", SETTINGS)
    assert check_of(loaded(), "my_log") == "log 3 []"
    (tmp_path / "lora-router.toml").write_text("max_running = 8\n[my-log]\nmost = 4\npath = 'file'\n")
    assert check_of(loaded(), "my_log") == "file 4 []"
    monkeypatch.setenv("LORA_ROUTER_MY_LOG__MOST", "5")
    monkeypatch.setenv("LORA_ROUTER_MY_LOG__NAMES", "a, b")
    assert check_of(loaded(), "my_log") == "file 5 ['a', 'b']"
    assert check_of(loaded(**{"my-log.most": "6"}), "my_log") == "file 6 ['a', 'b']"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[log]\nmots = 1", "unknown setting log.mots (from lora-router.toml); did you mean 'most'?"),
        ("[log]\nmost = 'many'", "log.most (from lora-router.toml): input should be a valid integer"),
    ],
)
def test_wrong_settings_cost_their_plugin_alone(write: Write, tmp_path: Path, toml: str, said: str) -> None:
    write("log.py", SETTINGS)
    write("other.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text(toml)
    host = loaded()
    host.check_tables()
    assert said in status_of(host, "log").error
    assert [flaw for flaw in host.flaws if said in flaw]
    assert status_of(host, "other").error == ""


def test_a_table_of_no_plugin_is_refused_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("remote.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text("[remtoe]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"\[remtoe\] .* did you mean \[remote\]\?"):
        loaded().check_tables()
    (tmp_path / "lora-router.toml").write_text("[plugins.remote]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"settings of the plugin NAME are in \[NAME\]"):
        load_settings()


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


CHECK = """
@hookimpl
def register_checks(register):
    register(lambda: {})
"""


def test_built_in_plugins_are_listed_as_all_others(write: Write) -> None:
    write("one.py", CHECK.format("None"))
    found = {status.name: status for status in loaded().status()}
    assert (found["vllm"].source, found["vllm"].hooks) == (
        "built-in",
        ("register_engines", "register_settings"),
    )
    assert (found["one"].source, found["one"].hooks) == ("file", ("register_checks",))


def test_a_core_without_extensions_does_without_them(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("one.py", CHECK.format("None"))
    monkeypatch.setattr(
        "router.plugins.host.built_in_modules", lambda: {"router.extensions.absent": Path("absent.py")}
    )
    host = loaded()
    assert "ModuleNotFoundError" in status_of(host, "absent").error
    with pytest.raises(ConfigError, match=r"engine .* is 'vllm', and there are torch"):
        engine_of(Settings(engine="vllm"), host)


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


def test_a_plugin_adds_a_command_to_a_group(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from router.cli.main import run

    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n# plugins/count.py\n(.*?)```", page, re.DOTALL)
    write("count.py", example)
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
    assert "learning-curve" not in done.out
    assert run(["route", "calibrate", "--help"]) == 0


# -- engines and adapter sources


ENGINE = """
from router.engine import TextEngine
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
    with pytest.raises(ConfigError, match="there are echo, torch, vllm"):
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


# -- the server's life, metrics, checks


LIFE = """
from pathlib import Path

calls = []

@hookimpl
async def on_startup(server):
    calls.append(("startup", server.address))

@hookimpl
def on_ready(server):
    calls.append(("ready", server.address))

@hookimpl
async def on_shutdown(server):
    Path("calls").write_text(repr(calls))
"""


async def test_a_plugin_is_told_of_the_servers_life(write: Write, tmp_path: Path) -> None:
    write("life.py", LIFE)
    async with serving() as (served, _):
        address = served.server.address
    assert (tmp_path / "calls").read_text() == repr([("startup", ""), ("ready", address)])


async def test_a_changed_plugin_is_ended_and_started_again(write: Write, tmp_path: Path) -> None:
    write("life.py", LIFE)
    async with serving() as (served, _):
        write("life.py", LIFE.replace('"ready"', '"ready again"'))
        await served.plugins.pick_up()
        assert (tmp_path / "calls").read_text().startswith("[('startup', '')")
    assert "ready again" in (tmp_path / "calls").read_text()


STEPS = """
from pathlib import Path

class Plugin:
    def __init__(self):
        self.steps = []

    @hookimpl
    async def on_startup(self, server):
        self.steps.append(("startup", server.address))

    @hookimpl
    def on_load(self, server):
        self.steps.append(("load", server.address != ""))

    @hookimpl
    def on_loaded(self, server):
        self.steps.append(("loaded", server.ready.is_set(), server.engine._started))

    @hookimpl
    def on_shutdown(self, server):
        Path("steps").write_text(repr(self.steps))
"""


async def test_a_plugins_object_follows_the_steps_of_a_start(write: Write, tmp_path: Path) -> None:
    write("steps.py", STEPS)
    async with serving():
        pass
    steps = [("startup", ""), ("load", True), ("loaded", False, True)]
    assert (tmp_path / "steps").read_text() == repr(steps)


def test_a_hook_is_a_function_or_a_method(write: Write) -> None:
    write("both.py", STEPS + "@hookimpl\ndef on_load(server): ...\n")
    assert "on_load is implemented twice" in status_of(loaded(), "both").error


async def test_a_plugin_that_fails_at_start_costs_itself(write: Write) -> None:
    write("bad.py", "@hookimpl\nasync def on_startup(server):\n    raise ValueError('no disk')\n")
    write("worse.py", "@hookimpl\ndef on_startup(server):\n    raise SystemExit(3)\n")
    async with serving() as (served, client):
        assert (await client.generate("hello", max_tokens=2)).text
        flaws = served.server.health.degraded
        assert any("plugin bad: on_startup: ValueError: no disk" in flaw for flaw in flaws)
        assert any("plugin worse: on_startup: RuntimeError" in flaw for flaw in flaws)
        assert any("no disk" in warning for warning in status_of(served.plugins, "bad").warnings)


METRICS = """
from prometheus_client import Counter

@hookimpl
def register_metrics(registry):
    Counter("my_greetings", "Greetings.", registry=registry).inc(3)
"""


async def test_metrics_and_checks_of_a_plugin_are_shown(write: Write) -> None:
    write("counting.py", METRICS)
    write("disk.py", CHECK.format("'the disk is nearly full'"))
    write("failing.py", CHECK.format("1 / 0"))
    async with serving() as (served, _):
        page = (await served.server.metrics.page())[0].decode()
        assert "my_greetings_total 3.0" in page
        health = served.server.health
        await until(lambda: "plugin disk: the disk is nearly full" in health.degraded, 5)
        await until(lambda: any("failing: register_checks: ZeroDivision" in f for f in health.degraded), 5)


# -- services, routes and authenticators


SERVICE = """
import grpc
from google.protobuf.wrappers_pb2 import StringValue
from router.server.policy import INFER

class Echo:
    async def Say(self, request, call):
        return StringValue(value="NAME " + request.value)

def add(servicer, server):
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Say, StringValue.FromString, StringValue.SerializeToString
    )
    server.add_registered_method_handlers("example.Echo", {"Say": handler})

@hookimpl
def register_services(register):
    register(add, Echo(), {"/example.Echo/Say": INFER})
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


async def said_by(
    app: ServerApp, text: str, method: str = "/example.Echo/Say", *metadata: tuple[str, str]
) -> str:
    """What a method of a plugin says."""
    async with grpc.aio.insecure_channel(app.address) as channel:
        say = channel.unary_unary(method, StringValue.SerializeToString, StringValue.FromString)
        return str((await say(StringValue(value=text), metadata=metadata)).value)


async def got(app: ServerApp, path: str, **headers: str) -> Any:
    async with httpx2.AsyncClient(base_url=f"http://{app.http_address}") as client:
        return await client.get(path, headers=headers)


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
        (ROUTE.replace("/hello/{who}", "/console/{who}"), "must begin with '/', and not with '/console'"),
        (ROUTE.replace("{who}", "{who:odd}", 1), "Unknown path convertor 'odd'"),
        (
            SERVICE.replace("example.Echo", "grpc.health.v1.Health").replace("Say", "Check"),
            "the server itself",
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


# -- requests


REWRITE = """
from dataclasses import replace
from router.errors import InvalidRequest
from router.types import Turn

@hookimpl
def rewrite_request(request):
    if "fail" in request.text:
        raise KeyError("a@b.example")
    return replace(request, turns=(Turn("user", request.text.upper()),), request_id="changed")
"""


async def test_a_request_is_rewritten_before_it_is_routed(write: Write) -> None:
    write("upper.py", REWRITE)
    async with serving() as (served, client):
        answer = await client.generate("one two", max_tokens=8)
        assert "ONE TWO" in answer.text
        assert served.server.engine.jobs[-1].request_id != "changed"  # type: ignore[attr-defined]
        answer = await client.generate("fail not", max_tokens=8)
        assert "fail not" in answer.text
        (warning,) = status_of(served.plugins, "upper").warnings
        assert "rewrite_request failed 1 times, at last: KeyError at upper.py" in warning
        assert "a@b.example" not in warning


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise KeyError", "UNAVAILABLE"),
        ("import time; time.sleep(1)", "UNAVAILABLE"),
        ("return 3", "UNAVAILABLE"),
        ("raise PermissionDenied('not today')", "PERMISSION_DENIED"),
    ],
)
async def test_a_required_rewriter_that_fails_refuses(write: Write, body: str, code: str) -> None:
    write(
        "mask.py",
        f"""
        from router.errors import PermissionDenied

        @hookimpl(timeout_ms=200, required=True)
        def rewrite_request(request):
            {body}
        """,
    )
    async with serving() as (_, client):
        with pytest.raises(Exception, match=r"mask must rewrite|not today") as caught:
            await client.generate("one", max_tokens=2)
        assert getattr(caught.value, "code", code) == code


OBSERVE = """
import json
import re

@hookimpl
def on_decision(record):
    with open("log", "a") as file:
        print("decision", json.dumps(record.to_json()), file=file)

@hookimpl
def on_answer(record):
    with open("log", "a") as file:
        print("answer", json.dumps(record.to_json()), file=file)
"""


async def test_observers_get_records_in_order(write: Write, tmp_path: Path) -> None:
    write("log.py", OBSERVE)
    async with serving() as (_, client):
        answer = await client.generate("one two", max_tokens=8, labels={"team": "a"})
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert [kind for kind, _ in lines] == ["decision", "answer"]
    decision, ended = (json.loads(text) for _, text in lines)
    assert (decision["text"], decision["adapter"], decision["labels"]) == ("one two", "base", {"team": "a"})
    assert decision["request_id"] == ended["request_id"] == answer.response_id
    assert (ended["text"], ended["finish"], ended["error"]) == (answer.text, "stop", "")
    assert ended["completion_tokens"] == answer.usage.completion_tokens


async def test_a_slow_observer_costs_records_and_no_request(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.plugins.runtime.MOST_RECORDS", 1)
    monkeypatch.setattr("router.plugins.runtime.FLUSH_SECONDS", 0.0)
    write("slow.py", "import time\n@hookimpl\ndef on_decision(record):\n    time.sleep(5)\n")
    write("bad.py", "@hookimpl\ndef on_answer(record):\n    raise KeyError(record.text)\n")
    async with serving() as (served, client):
        for _ in range(4):
            await asyncio.wait_for(client.generate("one", max_tokens=2), 3)
        slow, bad = (
            next(r for r in served.server.hooks.running() if r.plugin.name == name)
            for name in ("slow", "bad")
        )
        assert slow.observer is not None
        assert slow.observer.dropped >= 2
        await until(lambda: "on_answer" in bad.faults and bad.faults["on_answer"].count == 4)
        page = (await served.server.metrics.page())[0].decode()
        assert 'lora_router_plugin_faults_total{hook="on_answer",plugin="bad"} 4.0' in page
        assert f'lora_router_plugin_records_dropped_total{{plugin="slow"}} {slow.observer.dropped}' in page


def test_an_asynchronous_observer_is_refused(write: Write) -> None:
    write("late.py", "@hookimpl\nasync def on_answer(record): ...\n")
    assert "on_answer is asynchronous" in status_of(loaded(), "late").error


async def test_a_plugin_observes_reports_of_experiments(write: Write) -> None:
    write("seen.py", "@hookimpl\ndef on_report(report, server):\n    server.seen = report\n")
    async with serving() as (served, _):
        served.server.hooks.reported("a report")
        await until(lambda: getattr(served.server, "seen", "") == "a report")


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


def test_the_engine_of_the_page_is_made(write: Write) -> None:
    write("echo.py", example("echo.py"))
    engine, _ = engine_of(Settings(engine="echo"), loaded())
    assert isinstance(engine, TextEngine)


def test_the_source_of_the_page_has_an_adapter(write: Write, tmp_path: Path) -> None:
    from router.cli.main import run

    write("shelf.py", example("shelf.py"))
    write_adapter(tmp_path / "shelf" / "contracts" / "1.2.0")
    command = ["adapters", "add", f"shelf:{tmp_path}/shelf/contracts/1.2.0", "--no-base"]
    assert run([*command, "--adapters-dir", "adapters"]) == 0
    assert (tmp_path / "adapters" / "contracts" / "1.2.0" / "adapter_config.json").is_file()


def test_the_test_of_the_page_passes(write: Write) -> None:
    for name in ("decisions.py", "mask.py"):
        write(name, example(name))
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import asyncio\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    names["test_addresses_are_masked"]()


async def test_the_doors_of_the_page_are_open(write: Write, tmp_path: Path) -> None:
    for name in ("hello.py", "shout.py", "api_keys.py"):
        write(name, example(name))
    (tmp_path / "clients.toml").write_text(CLIENTS.format("0" * 64))
    (tmp_path / "clients.toml").chmod(0o600)
    settings = {"clients": tmp_path / "clients.toml", "api_keys.keys": '{"web": "secret"}'}
    async with serving(http_listen="127.0.0.1:0", **settings) as (served, _):
        app = served.server
        answer = await got(app, "/hello/anna", **{"x-api-key": "secret"})
        assert answer.json() == {"hello": "anna", "from": "web"}
        assert (await got(app, "/hello/anna", **{"x-api-key": "Secret"})).status_code == 401
        assert await said_by(app, "hi", "/example.Shout/Say", ("x-api-key", "secret")) == "HI"
