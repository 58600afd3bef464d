import json

import pytest

from tests.client.scripted import adapter


def test_list_reads_like_ps(cli, remote):
    done = cli("adapters", "list")
    header, *lines = done.out.splitlines()
    assert header.split()[:4] == ["NAME", "VERSION", "STATE", "DOMAIN"]
    assert [line.split()[:3] for line in lines[:2]] == [
        ["code", "1.0.0", "ready"],
        ["legal", "1.0.0", "ready"],
    ]
    assert len(lines) == 5
    assert all(line == line.rstrip() for line in done.out.splitlines())


def test_a_long_reason_stays_on_one_line(cli, remote):
    long = "lora_B of q_proj " * 40 + "\x1b[31m\nis all zero"
    remote.adapters.ListAdapters = lambda *_: None
    from router.cli.adapters import row
    from router.client.messages import to_adapter

    cells = row(to_adapter(adapter("legal", default=True, rank=16, size_bytes=9_400_000, error=long)))
    assert cells[1] == "1.0.0 *"
    assert cells[5:7] == ("16", "9.4 MB")


def test_show_tells_the_reason(cli, remote):
    done = cli("adapters", "show", "legal")
    assert "quarantined: lora_B of q_proj is all zero" in done.out
    assert remote.adapters.requests[0].name == "adapters/legal"
    assert "acts from  the tokens 1, 520 on" in done.out


def test_load_and_unload(cli, remote):
    assert cli("adapters", "load", "medical", "--pin").out == "medical@1.0.0 is ready, 0 B\n"
    assert cli("adapters", "unload", "medical@1.0.0").out == "medical@1.0.0 is ready, 4.1 kB freed\n"
    load, unload = remote.adapters.requests
    assert (load.pinned, unload.name) == (True, "adapters/medical/versions/1.0.0")


def test_default_and_rollback(cli, remote):
    said = cli("adapters", "default", "medical@1.0.0").out
    assert said == "medical@1.0.0 is the default, before it was medical@1.2.0\n"
    assert remote.adapters.requests[0].name == "adapters/medical/versions/1.0.0"


def test_the_gate_is_overruled_with_a_reason_and_taken_back(cli, remote):
    assert cli("adapters", "default", "medical@1.0.0", "--force", "--reason", "ticket 7").code == 0
    said = cli("adapters", "default", "medical", "--auto").out
    assert said == "medical@1.2.0 is the default by the rule, before it was medical@1.0.0\n"
    forced, reset = remote.adapters.requests
    assert (forced.force, forced.reason, reset.name) == (True, "ticket 7", "adapters/medical")


@pytest.mark.parametrize("more", [("medical@1.0.0",), ("medical", "--force"), ("medical", "--reason", "x")])
def test_auto_goes_alone(cli, remote, more):
    done = cli("adapters", "default", "--auto", *more)
    assert done.code == 2
    assert "--auto takes NAME alone" in done.err
    assert not remote.adapters.requests


def test_json(cli, remote):
    assert [a["ref"] for a in json.loads(cli("adapters", "list", "--json").out)][:1] == [
        "adapters/code/versions/1.0.0"
    ]
    assert json.loads(cli("adapters", "show", "legal", "--json").out)["state"] == "quarantined"
    assert json.loads(cli("adapters", "load", "medical", "--json").out)["etag"] == "e1"
    assert json.loads(cli("adapters", "unload", "medical", "--json").out)["freed_bytes"] == 4096
