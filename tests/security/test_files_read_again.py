"""Files that a running server reads again, with malicious, random and broken content.

The old content stays in force, calls of clients go on, and `degraded` says what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from router.access.clients import parse_clients, read_clients
from router.access.issuers import USUAL
from router.client import Client
from router.errors import ConfigError
from router.extensions.oidc import JwtAuthenticator
from router.extensions.oidc.jwt import Tokens, Unusable, keys_in
from router.plugins import PluginHost
from router.registry.choices import DefaultChoices
from router.registry.format.trust import Lock
from router.routing.calibration import read_calibration
from router.server.app import ServerApp
from router.server.tls import read_pems
from tests.extensions.oidc.issuing import Issuing
from tests.routing.conftest import calibration
from tests.security.helpers import write_clients
from tests.server.helpers import Start, until

T = TypeVar("T")
DEEP = 20_000
DATES = st.sampled_from(
    [
        "9999-12-31T23:59:59-05:00",
        "0001-01-01T00:00:00+23:59",
        "10000-01-01",
        "2027-02-30T00:00:00Z",
        "-1",
        "1e400",
    ]
)
NUMBERS = st.sampled_from(["1" + "0" * 5000, "-1", "0", "1e999", "nan", "inf", "0x" + "f" * 300, "1_0"])
CLIENTS = st.one_of(
    st.builds('[[client]]\nid = "x"\ncert = "x"\nexpires = {}\n'.format, DATES),
    st.builds('[[client]]\nid = "x"\ncert = "x"\nrequests_per_minute = {}\n'.format, NUMBERS),
    st.builds('[[client]]\nid = "x"\ncert = "{}"\n'.format, st.text(max_size=20)),
    st.builds('[[client]]\nid = "{}"\n'.format, st.text(max_size=20)),
    st.sampled_from(
        [
            "a = " + "[" * DEEP,
            "a = " + "{a=" * DEEP,
            "[" + "a." * DEEP + "a]",
            "[[client]]\n" * 1000,
            "client = 1",
            "[client]\nx = 1",
            "[[issuer]]\nurl = 1979-05-27",
            '[[client]]\nid = "x"\ncert = ["x"]',
        ]
    ),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
).map(lambda said: json.dumps(said).encode())
DOCUMENTS = st.one_of(JSON, st.sampled_from([b"[" * DEEP, b'{"a":' * DEEP, b"1" + b"0" * 5000, b"1e999"]))


def changed(good: bytes) -> st.SearchStrategy[bytes]:
    """Random bytes, and the good ones cut off, with a byte replaced, repeated. None is empty: an emptied file
    is not read at once."""
    places = st.integers(0, len(good) - 1)
    replaced = st.builds(lambda at, by: good[:at] + by + good[at + 1 :], places, st.binary(max_size=3))
    return st.one_of(
        st.binary(max_size=200),
        places.map(lambda at: good[:at]),
        replaced,
        st.sampled_from([b"\0" * 100, b"\xff\xfe", b"\xef\xbb\xbf" + good, good + b"\0", good * 2]),
    ).filter(bool)


def aside(path: Path) -> None:
    """Nothing is at the path any more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)  # takes no room


SHAPES: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": pipe,
    "a loop of links": loop,
    "an endless device": device,
    "huge": large,
}


class Running:
    """A server in the event loop of the test, asked from a thread."""

    def __init__(self, server: ServerApp, **how: Any) -> None:
        self.server, self._how, self._loop = server, how, asyncio.get_running_loop()

    def _there(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def look(self) -> None:
        """The server looks at its files now."""

        async def look() -> None:
            self.server.access.look()

        self._there(look())

    @property
    def degraded(self) -> list[str]:
        async def look() -> list[str]:
            return self.server.health.degraded

        return self._there(look())

    def answers(self) -> bool:
        """A call over a connection of its own."""
        with Client(self.server.address, timeout=10, **self._how) as client:
            return bool(client.generate("one two three").text)


@pytest.fixture
async def running(start_server: Start, tmp_path: Path) -> SimpleNamespace:
    """A server with TLS, a clients file and an issuer's keys in a file, asked as a client of either."""
    authority, issuing = trustme.CA(), Issuing()
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "mine", "mykey")}
    authority.cert_pem.write_to_path(paths["ca"])
    for host, cert, key in (("127.0.0.1", "cert", "key"), ("team.example", "mine", "mykey")):
        made = authority.issue_cert(host)
        paths[cert].write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        paths[key].write_bytes(made.private_key_pem.bytes())
    clients, jwks = write_clients(tmp_path), tmp_path / "jwks.json"
    jwks.write_bytes(issuing.document())
    with clients.path.open("a") as file:
        file.write(issuing.table(jwks=str(jwks)) + issuing.client())
    shown = {"tls_cert": paths["cert"], "tls_key": paths["key"], "tls_client_ca": paths["ca"]}
    server = await start_server(clients=clients.path, **shown)
    await until(lambda: not server.access.keys_problem and bool(tokens_of(server)._keys), 5)
    secured = {"tls_ca": tmp_path / "trusted.pem", "client_cert": paths["mine"], "client_key": paths["mykey"]}
    authority.cert_pem.write_to_path(secured["tls_ca"])
    tokens = {"own": Running(server, token=clients.infer, **secured)}
    tokens["issued"] = Running(server, token=issuing.token(), **secured)
    return SimpleNamespace(
        at=tokens["own"], **tokens, clients=clients.path, jwks=jwks, paths=paths, server=server
    )


def tokens_of(server: Any) -> Tokens:
    """Those that its authenticator checks."""
    found = (one for one, _ in server.access._authenticators if isinstance(one, JwtAuthenticator))
    return next(found).tokens


def is_good(read: Callable[[], Any]) -> bool:
    try:
        read()
    except ConfigError:
        return False
    return True


@pytest.mark.slow
async def test_the_clients_file(running: SimpleNamespace) -> None:
    path, at, good = running.clients, running.at, running.clients.read_bytes()

    @given(st.one_of(changed(good), CLIENTS, CLIENTS.map(lambda more: good + more)))
    def holds(content: bytes) -> None:
        path.write_bytes(good)
        at.look()
        path.write_bytes(content)
        at.look()
        told = [flaw for flaw in at.degraded if not flaw.startswith("the keys of an issuer")]
        if is_good(lambda: read_clients(path)):  # it may name another issuer
            assert not told
            return
        assert at.answers()
        (flaw,) = told
        assert flaw.startswith("the clients file cannot be used, those from before hold: ")

    await asyncio.to_thread(holds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cert", "key", "ca"])
async def test_the_tls_files(running: SimpleNamespace, name: str) -> None:
    paths, at = running.paths, running.at
    good = paths[name].read_bytes()

    @given(changed(good))
    def holds(content: bytes) -> None:
        paths[name].write_bytes(good)
        assert not at.degraded
        paths[name].write_bytes(content)
        if is_good(lambda: read_pems(paths["cert"], paths["key"], paths["ca"])):
            assert not at.degraded
            return
        assert at.answers()
        (flaw,) = at.degraded
        assert flaw.startswith("the TLS files cannot be used")

    await asyncio.to_thread(holds)


@pytest.mark.slow
async def test_the_keys_of_an_issuer(running: SimpleNamespace) -> None:
    path, at, good = running.jwks, running.issued, running.jwks.read_bytes()

    async def fetched() -> None:
        (keys,) = tokens_of(running.server)._keys.values()
        running.server.access.look()
        await asyncio.wait({keys._fetching})

    def is_used(content: bytes) -> bool:
        try:
            keys_in(content, USUAL)
        except Unusable:
            return False
        return True

    @given(st.one_of(changed(good), DOCUMENTS))
    def holds(content: bytes) -> None:
        path.write_bytes(good)
        at._there(fetched())
        path.write_bytes(content)
        at._there(fetched())
        if is_used(content):
            assert not at.degraded
            return
        assert at.answers()
        (flaw,) = at.degraded
        assert flaw.startswith("the keys of an issuer cannot be used")

    await asyncio.to_thread(holds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["clients", "cert", "key", "ca", "jwks"])
async def test_what_is_no_readable_file(running: SimpleNamespace, name: str, shape: str) -> None:
    path = running.paths.get(name) or getattr(running, name)
    good, at = path.read_bytes(), running.issued if name == "jwks" else running.own

    def holds() -> None:
        aside(path)
        SHAPES[shape](path)
        at.look()
        assert at.answers()

    await asyncio.to_thread(holds)
    await until(lambda: len(running.server.health.degraded) == 1, 5)
    aside(path)
    path.write_bytes(good)
    await until(lambda: running.server.health.degraded == [], 5)
    assert await asyncio.to_thread(at.answers)


async def test_no_permission_to_read_and_back(running: SimpleNamespace) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    running.clients.chmod(0)
    await until(lambda: "Permission denied" in str(running.server.health.degraded), 5)
    assert await asyncio.to_thread(running.at.answers)
    running.clients.chmod(0o600)
    await until(lambda: running.server.health.degraded == [], 5)


@pytest.mark.parametrize(
    "error", [OverflowError("x"), RecursionError(), MemoryError(), KeyError("x"), AssertionError()]
)
async def test_an_exception_that_nobody_expects(
    running: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """As a defect in what reads the file."""

    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("router.access.access.read_clients", fail)
    running.clients.write_text("other")
    await until(lambda: type(error).__name__ in str(running.server.health.degraded), 5)
    assert await asyncio.to_thread(running.at.answers)
    await asyncio.sleep(0.6)  # two more looks
    said = [record for record in caplog.records if "not usable" in record.message]
    assert len(said) == 1


@given(st.one_of(st.binary(), CLIENTS))
def test_a_clients_file_is_read_or_refused(content: bytes) -> None:
    with suppress(UnicodeDecodeError):
        text = content.decode()
        is_good(lambda: parse_clients(text))


@given(
    st.one_of(
        st.binary(max_size=200), st.text().map(str.encode), st.just(b"a" * 64 + b"\n" + b"b" * 63)
    ).filter(bool)
)
def test_the_list_of_digests(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("lock") / "adapters.lock"
    path.write_text("a" * 64)
    lock = Lock(path)
    path.write_bytes(content)
    found = lock.digests()
    assert bool(lock.problem) != is_good(lambda: Lock(path))
    assert found == (frozenset({"a" * 64}) if lock.problem else Lock(path).digests())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_list_of_digests_that_is_no_readable_file(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "adapters.lock"
    path.write_text("a" * 64)
    lock = Lock(path)
    aside(path)
    SHAPES[shape](path)
    assert lock.digests() == {"a" * 64}
    assert lock.problem.startswith(f"adapters_lock {path}: ")


@given(st.one_of(changed(calibration().model_dump_json(indent=2).encode()), DOCUMENTS))
def test_a_calibration_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    path.write_bytes(content)
    is_good(lambda: read_calibration(path))


@given(
    st.one_of(
        DOCUMENTS,
        st.builds(
            '{{"defaults": {{}}, "overrides": {}, "served": {}}}'.format,
            JSON.map(bytes.decode),
            JSON.map(bytes.decode),
        ).map(str.encode),
    )
)
def test_kept_choices_are_read_or_left_out(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / "defaults.json").write_bytes(content)
    DefaultChoices(folder, [folder]).read()


@pytest.mark.slow
@given(
    st.one_of(
        st.binary(max_size=100),
        st.sampled_from([b"[" * DEEP, b"-" * DEEP + b"1", b"1" * 5000, b"\0", b"raise SystemExit"]),
    )
)
def test_a_plugin_with_any_content(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("plugins")
    path = folder / "one.py"
    path.write_text((Path(__file__).parents[2] / "plugins" / "examples.py").read_text())
    host = PluginHost([folder])
    host.refresh()
    before = host.registrations()
    assert before
    path.write_bytes(content)
    host.refresh()
    assert host.registrations() == before or not host.flaws
    assert len(host.flaws) <= 1
