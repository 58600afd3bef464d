import gc
import socket
from pathlib import Path

import pytest

from router.built_in import built_in_folders
from router.cli.settings import folders
from router.engine.fake import FakeEngine
from router.errors import ConfigError


@pytest.fixture
def served(monkeypatch):
    """Settings that `serve` would run with."""
    seen = []
    monkeypatch.setattr("router.cli.compose.serve_until_stopped", lambda settings: seen.append(settings) or 0)
    return seen


def test_flags_are_settings(cli, served, own_folder):
    for name in ("one", "two", "plug"):
        (own_folder / name).mkdir()
    flags = (
        "--listen 127.0.0.1:6000 --metrics-listen= --adapters-dir one --adapters-dir two --plugins-dir plug"
    )
    more = "--model m --device cpu --quantize int8 --set dtype=float32 --set native=false --set threads=2"
    more += " --set slots=5"
    assert cli("serve", *flags.split(), *more.split(), "--set", "gate=off").code == 0
    (settings,) = served
    assert (settings.listen, settings.metrics_listen) == ("127.0.0.1:6000", "")
    assert settings.adapters_dir == (Path("one"), Path("two"))
    assert settings.plugins_dir == (Path("plug"),)
    assert (settings.model, settings.dtype, settings.device) == ("m", "float32", "cpu")
    assert settings.quantize == "int8"
    assert (settings.native, settings.threads, settings.slots) == (False, 2, 5)
    assert settings.gate == "off"


def test_no_garbage_is_collected_while_the_base_is_loaded(cli, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "router.cli.compose.serve_until_stopped", lambda settings: seen.append(gc.isenabled()) or 0
    )
    assert cli("serve").code == 0
    assert seen == [False]
    assert gc.isenabled()


def test_keys_and_lists_of_adapters_are_settings(cli, served):
    assert cli("serve", "--set", "require_signed=a.pub,RWxyz", "--set", "adapters_lock=l").code == 0
    assert (served[0].require_signed, served[0].adapters_lock) == (("a.pub", "RWxyz"), "l")
    assert cli("serve").code == 0
    assert (served[1].require_signed, served[1].adapters_lock) == ((), "")
    assert cli("serve", "--set", "require_signed=a.pub, b.pub,").code == 0
    assert served[2].require_signed == ("a.pub", "b.pub")


def test_without_folders_here_the_built_in_ones_are_served(cli, served):
    assert cli("serve").code == 0
    assert served[0].adapters_dir == built_in_folders("adapters")
    assert served[0].plugins_dir == built_in_folders("plugins")
    assert (built_in_folders("plugins")[0] / "examples.py").is_file()


def test_folders_here_come_before_the_built_in_ones(cli, served, own_folder):
    (own_folder / "adapters").mkdir()
    (own_folder / "plugins").mkdir()
    assert cli("serve").code == 0
    assert served[0].adapters_dir == (Path("adapters"), *built_in_folders("adapters"))
    assert served[0].plugins_dir == (Path("plugins"), *built_in_folders("plugins"))


def test_bare_leaves_out_the_built_in_ones(cli, served, own_folder):
    (own_folder / "adapters").mkdir()
    assert cli("serve", "--bare").code == 0
    assert (served[0].adapters_dir, served[0].plugins_dir) == (
        (Path("adapters"),),
        built_in_folders("plugins"),
    )
    (own_folder / "plugins").mkdir()
    assert cli("serve", "--bare").code == 0
    assert served[1].plugins_dir == (Path("plugins"),)
    (own_folder / "adapters").rmdir()
    assert cli("serve", "--bare").code == 0
    assert served[2].adapters_dir == ()


def test_folders_that_are_named_stand_alone(cli, served, own_folder):
    (own_folder / "mine").mkdir()
    (own_folder / "plugins").mkdir()
    assert cli("serve", "--adapters-dir", "mine", "--plugins-dir", "plugins").code == 0
    assert (served[0].adapters_dir, served[0].plugins_dir) == ((Path("mine"),), (Path("plugins"),))


def test_the_built_in_folder_is_served_once(own_folder):
    (own_folder / "adapters").symlink_to(built_in_folders("adapters")[0])
    assert folders((), "adapters", bare=False) == (Path("adapters"),)


def test_a_folder_that_was_said_must_be_there(cli, served):
    done = cli("serve", "--adapters-dir", "absent")
    assert done.code == 2
    assert "absent is no folder" in done.err
    with pytest.raises(ConfigError):
        folders((Path("absent"),), "plugins", bare=False)


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.168.1.2:1", "example.org:1"])
def test_a_public_address_must_be_meant(cli, served, listen):
    done = cli("serve", "--listen", listen)
    assert done.code == 2
    assert "--insecure-listen" in done.err
    assert not served
    assert cli("serve", "--listen", listen, "--insecure-listen").code == 0


def test_a_public_address_from_the_environment_must_be_meant_too(cli, served, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_LISTEN", "0.0.0.0:50051")
    assert cli("serve").code == 2
    monkeypatch.setenv("LORA_ROUTER_INSECURE_LISTEN", "1")
    assert cli("serve").code == 0


def test_a_public_address_with_tls_and_clients_needs_no_flag(cli, served):
    clients, tls = ("--clients", "c.toml"), ("--tls-cert", "c.pem", "--tls-key", "k.pem")
    public = ("serve", "--listen", "0.0.0.0:50051")
    assert "without a clients file" in cli(*public, *tls).err
    assert "without TLS:" in cli(*public, *clients).err
    assert not served
    assert cli(*public, *tls, *clients).code == 0


def test_metrics_that_others_can_read_must_be_meant_too(cli, served):
    done = cli("serve", "--metrics-listen", "0.0.0.0:9464")
    assert done.code == 2
    assert "metrics at 0.0.0.0:9464" in done.err
    assert not served
    assert cli("serve", "--metrics-listen", "0.0.0.0:9464", "--insecure-listen").code == 0
    assert cli("serve", "--metrics-listen", "").code == 0


def test_open_metrics_can_be_meant_alone(cli, served, monkeypatch):
    """So that a certificate or clients that are missing by mistake still keep the server from starting."""
    metrics = ("serve", "--metrics-listen", "0.0.0.0:9464")
    assert "--insecure-metrics" in cli(*metrics).err
    assert cli(*metrics, "--insecure-metrics").code == 0
    monkeypatch.setenv("LORA_ROUTER_INSECURE_METRICS", "1")
    assert cli(*metrics).code == 0
    served.clear()
    for public in ("--listen", "--http-listen"):
        done = cli(*metrics, public, "0.0.0.0:50051")
        assert done.code == 2
        assert "without TLS and clients" in done.err
    assert not served


@pytest.mark.parametrize("listen", ["foo", "127.0.0.1:99999", "127.0.0.1", ":1"])
def test_an_address_that_is_none_is_refused(cli, served, listen):
    done = cli("serve", "--listen", listen, "--insecure-listen")
    assert done.code == 2
    assert "must be HOST:PORT" in done.err
    assert not served


def test_an_unknown_dtype_is_explained(cli, served):
    done = cli("serve", "--set", "dtype=int4")
    assert done.code == 2
    assert "dtype (from flag)" in done.err


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen", "--http-listen"])
def test_a_taken_port_is_told_before_anything_is_loaded(cli, monkeypatch, flag):
    monkeypatch.setattr("router.cli.engines.resolve_model", lambda model: pytest.fail("loaded"))
    monkeypatch.setattr("router.cli.engines.make_engine", lambda settings: pytest.fail("loaded"))
    free = {"--listen": "127.0.0.1:0", "--metrics-listen": ""}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli("serve", *(f"{name}={value}" for name, value in (free | {flag: address}).items()))
    assert done.code == 2
    assert f"cannot listen on {address}: something listens there already" in done.err
    assert f"choose another address with --set {flag[2:].replace('-', '_')}=HOST:PORT" in done.err


def test_all_taken_ports_are_told_at_once(cli):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        first, second = (f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other))
        done = cli("serve", "--listen", first, "--metrics-listen", second)
    assert done.code == 2
    assert f"cannot listen on {first} and {second}" in done.err
    assert "with --set listen=HOST:PORT and --set metrics_listen=HOST:PORT" in done.err


def test_a_taken_port_ends_with_2(cli, monkeypatch, own_folder):
    monkeypatch.setattr("router.cli.engines.resolve_model", lambda model: own_folder)
    monkeypatch.setattr("router.cli.engines.make_engine", lambda settings: FakeEngine())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli("serve", "--listen", address, "--metrics-listen=")
    assert done.code == 2
    assert f"cannot listen on {address}" in done.err
