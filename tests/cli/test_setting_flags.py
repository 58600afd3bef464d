import pytest

from router.cli.replica import METRICS_LISTEN, ReplicaCommand
from router.cli.serve import ServeCommand
from router.config import Settings


@pytest.fixture
def helped(cli):
    """The help of a command without the spaces, since lines break where they like."""
    return lambda command: "".join(cli(command, "--help").out.split())


@pytest.mark.parametrize(
    ("command", "names"), [("serve", ServeCommand.settings), ("replica", ReplicaCommand.settings)]
)
def test_help_of_a_flag_is_what_its_setting_means(helped, command, names):
    told = helped(command)
    for name in names:
        assert f"--{name.replace('_', '-')}" in told
        assert "".join(str(Settings.model_fields[name].description).split()) in told


@pytest.mark.parametrize(
    "flag",
    [
        "--clientsFILEfile",
        "--adapters-dirDIRadapter",
        "--listenHOST:PORTgRPCaddress,HOST:PORT[default:(127.0.0.1:50051)]",
        "--quantizenone|int8|int4weights",
        "--bareleaveout",
    ],
)
def test_a_flag_takes_kind_and_default_from_its_setting(helped, flag):
    assert flag in helped("serve")


def test_a_command_may_have_a_default_of_its_own(helped):
    assert f"[default:({METRICS_LISTEN})]" in helped("replica")


def test_a_value_that_its_setting_does_not_take_is_refused(cli):
    done = cli("serve", "--quantize", "int3")
    said = "lora-router: quantize (from flag): input should be 'none', 'int8' or 'int4'\n"
    assert (done.code, done.err) == (2, said)


@pytest.mark.parametrize(
    ("flags", "refused"), [((), "absent"), (("--adapters-dir", "missing"), "missing")], ids=["none", "one"]
)
def test_a_flag_replaces_the_environment_only_where_it_is_given(cli, monkeypatch, flags, refused):
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_DIR", "absent")
    done = cli("serve", *flags)
    assert (done.code, done.err.startswith(f"lora-router: {refused} is no folder; ")) == (2, True)
