import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from router.cli.settings import check_environment, load_settings
from router.config import Settings
from router.errors import ConfigError


@pytest.fixture
def file(own_folder):
    def write(text: str) -> Path:
        path = own_folder / "lora-router.toml"
        path.write_text(text)
        return path

    return write


def shown(done):
    return {s["name"]: (s["value"], s["origin"]) for s in json.loads(done.out)}


def test_flag_over_environment_over_file_over_default(cli, file, monkeypatch):
    file("slots = 8\nmax_running = 9\nmax_queue = 10\n")
    monkeypatch.setenv("LORA_ROUTER_MAX_RUNNING", "11")
    monkeypatch.setenv("LORA_ROUTER_SLOTS", "12")
    values = shown(cli("config", "show", "--json", "--set", "slots=13"))
    assert values["slots"] == (13, "flag")
    assert values["max_running"] == (11, "environment")
    assert values["max_queue"] == (10, "lora-router.toml")
    assert values["drain_seconds"] == (20.0, "default")


def test_settings_of_plugins_are_shown_with_their_origin(cli, file, monkeypatch):
    file("[ofrep]\nenabled = false\n")
    monkeypatch.setenv("LORA_ROUTER_OTEL__ENDPOINT", "env")
    values = shown(cli("config", "show", "--json"))
    assert values["ofrep.enabled"] == (False, "lora-router.toml")
    assert values["otel.endpoint"] == ("env", "environment")


def test_the_table_shows_the_origin(cli, file):
    file('adapters_dir = ["a", "b"]\n')
    lines = {line.split()[0]: line.split() for line in cli("config", "show").out.splitlines()}
    assert lines["adapters_dir"][1:4] == ["a,", "b", "lora-router.toml"]
    assert lines["native"][1:3] == ["true", "default"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_secret_is_never_shown(cli, monkeypatch, options):
    monkeypatch.setenv("LORA_ROUTER_REPLICA_SECRET", "hush-hush")
    done = cli("config", "show", *options)
    (line, *_) = [line for line in done.out.splitlines() if "***" in line]
    assert "environment" in done.out[done.out.index(line) :]
    assert "hush" not in done.out + done.err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cr@t@db.lan/x?sslmode=require", "postgresql://me:***@db.lan/x?sslmode=require"),
        ("postgresql://db.lan/x?user=me&password=s3cr", "postgresql://db.lan/x?user=me&password=***"),
        ("postgresql://me@db.lan:5432/x", "postgresql://me@db.lan:5432/x"),
        ("sqlite:////var/lib/x.sqlite", "sqlite:////var/lib/x.sqlite"),
    ],
)
@pytest.mark.parametrize("options", [["--json"], []])
def test_the_password_in_a_url_is_never_shown(cli, monkeypatch, options, url, shown):
    monkeypatch.setenv("LORA_ROUTER_DATABASE", url)
    said = cli("config", "show", *options).out
    assert "s3cr" not in said
    if options:
        assert {"name": "database", "value": shown}.items() <= next(
            setting for setting in json.loads(said) if setting["name"] == "database"
        ).items()


def test_an_unknown_key_is_an_error_with_the_nearest_name(cli, file):
    file("max_runing = 3\n")
    done = cli("config", "show")
    assert done.code == 2
    said = "unknown setting max_runing (from lora-router.toml); did you mean 'max_running'?"
    assert done.err == f"lora-router: {said}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slots = ", "not valid TOML"),
        (
            "max_queue = -1\n",
            "max_queue (from lora-router.toml): input should be greater than or equal to 0",
        ),
        ("slots = 0\n", "slots (from lora-router.toml): input should be greater than or equal to 1"),
        ("zzz = 1\n", "`lora-router config show` lists all"),
    ],
)
def test_a_bad_file_is_explained(file, text, said):
    file(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert said in caught.value.message
    assert "\n" not in caught.value.message.strip()


def test_a_named_file_is_read_and_must_exist(cli, own_folder):
    (own_folder / "other.toml").write_text("slots = 5\n")
    assert shown(cli("config", "show", "--json", "--config", "other.toml"))["slots"] == (5, "other.toml")
    assert cli("config", "show", "--config", "absent.toml").code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "said"),
    [("slots", "KEY=VALUE"), ("slot=3", "did you mean 'slots'?"), ("slots=x", "slots (from flag)")],
)
def test_bad_sets_are_refused(cli, pair, said):
    done = cli("config", "show", "--set", pair)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("place", ["file", "environment", "flag"])
def test_settings_of_no_plugin_are_refused_with_the_nearest_name(cli, file, monkeypatch, place):
    sets = []
    if place == "file":
        file('[otl]\nendpoint = "env"\n')
    elif place == "environment":
        monkeypatch.setenv("LORA_ROUTER_OTL__ENDPOINT", "env")
    else:
        sets = ["--set", "otl.endpoint=env"]
    done = cli("config", "show", *sets)
    assert done.code == 2
    assert "no plugin is called so; did you mean [otel]?" in done.err


def test_a_name_that_is_no_setting_is_refused_without_a_command(file):
    """By tests and benchmarks, which make settings themselves, and by a file that is beside them."""
    with pytest.raises(ValidationError, match="max_runing"):
        Settings(max_runing=3)  # type: ignore[call-arg]
    file("max_runing = 3\n")
    with pytest.raises(ValidationError, match="max_runing"):
        Settings()


def test_settings_that_do_not_go_together_are_told(cli):
    done = cli("config", "show", "--set", "tls_key=k.pem")
    assert done.code == 2
    assert done.err == "lora-router: tls_cert and tls_key go together\n"


def test_folders_from_the_environment_are_separated_like_path(monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_DIR", "one:two")
    assert load_settings().adapters_dir == (Path("one"), Path("two"))


def test_kubernetes_service_variables_do_no_harm(cli, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_PORT", "tcp://10.0.0.1:1")
    monkeypatch.setenv("LORA_ROUTER_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ROUTER_PORT", "tcp://10.0.0.1:1")
    assert cli("config", "show").code == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("LORA_ROUTER_MAX_RUNING", "did you mean LORA_ROUTER_MAX_RUNNING?"),
        ("lora_router_slot", "did you mean LORA_ROUTER_SLOTS?"),
        ("LORA_ROUTER_SERVR", "did you mean LORA_ROUTER_SERVER?"),
        ("LORA_ROUTER_XYZZY", "`lora-router config show` lists all settings"),
    ],
)
def test_a_misspelt_variable_is_an_error_with_the_nearest_name(cli, monkeypatch, name, hint):
    monkeypatch.setenv(name, "3")
    done = cli("config", "show")
    assert (done.code, done.err) == (2, f"lora-router: environment: {name} sets nothing; {hint}\n")


def test_variables_that_are_meant_for_somebody():
    of_kubernetes = ("SERVICE_PORT_GRPC", "PORT_50051_TCP", "PORT_50051_TCP_ADDR", "METRICS_SERVICE_HOST")
    of_commands = ("SERVER", "INSECURE_LISTEN", "INSECURE_METRICS", "TRACEBACK")
    names = [f"LORA_ROUTER_{name}" for name in (*of_kubernetes, *of_commands)]
    check_environment(dict.fromkeys([*names, "lora_router_slots", "PATH"], "1"))
