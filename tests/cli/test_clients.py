"""`lora-router clients`: a token is shown once, the file is for its owner alone."""

import json
import stat

import pytest

from router.access.clients import read_clients
from tests.extensions.oidc.issuing import Issuing


def test_a_client_is_made_listed_and_revoked(cli, own_folder):
    made = cli("clients", "new", "billing", "--role", "infer", "--adapter", "*", "--expires", "2027-01-01")
    token, file = made.out.strip(), own_folder / "clients.toml"
    assert made.code == 0
    assert read_clients(file).by_token(token).id == "billing"
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    seen = ("--adapter", "m-*", "--adapter", "legal", "--experiment", "m-*", "--tenant", "acme")
    assert cli("clients", "new", "grafana", *seen, "--role", "observe", "--cert", "grafana.svc").out == ""
    rows = [line.split() for line in cli("clients", "list").out.splitlines()]
    assert rows[1:] == [
        ["billing", "billing", "infer", "*", "1", "token", "2027-01-01T00:00:00+00:00"],
        ["grafana", "acme", "observe", "m-*,", "legal", "m-*", "certificate", "dns:grafana.svc"],
    ]
    (first, second) = json.loads(cli("clients", "list", "--json").out)
    assert (second["tenant"], second["experiments"]) == ("acme", ["m-*"])
    assert (first["id"], first["roles"], first["tokens"], first["expired"]) == (
        "billing",
        ["infer"],
        1,
        False,
    )
    assert cli("clients", "revoke", "billing").code == 0
    assert read_clients(file).by_token(token) is None
    assert [one.id for one in read_clients(file).all] == ["grafana"]
    assert token not in cli("clients", "list").out


def test_the_file_is_the_settings(cli, own_folder):
    (own_folder / "lora-router.toml").write_text('clients = "who.toml"\n')
    cli("clients", "new", "a", "--role", "infer")
    assert (own_folder / "who.toml").is_file()
    assert [one.id for one in read_clients(own_folder / "who.toml").all] == ["a"]


def test_a_link_stays_one(cli, own_folder):
    (own_folder / "clients.toml").symlink_to(own_folder / "real.toml")
    assert cli("clients", "new", "a").code == 0
    assert (own_folder / "clients.toml").is_symlink()
    assert read_clients(own_folder / "real.toml").all[0].id == "a"


def test_a_client_of_an_issuer_is_listed(cli, own_folder):
    issuing = Issuing()
    (own_folder / "clients.toml").write_text(issuing.table() + issuing.client("search", "service-search"))
    assert f"service-search of {issuing.url}" in cli("clients", "list").out
    assert cli("clients", "new", "billing", "--role", "infer").code == 0
    assert cli("clients", "revoke", "search").code == 0
    left = read_clients(own_folder / "clients.toml")
    assert ([one.id for one in left.all], list(left.issuers)) == (["billing"], [issuing.url])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("new", "a"), 1, "there is a client 'a' already"),
        (("new", "A"), 2, "id must have"),
        (("new", "b", "--role", "root"), 2, "unknown role 'root'"),
        (("new", "b", "--expires", "soon"), 2, "--expires takes a time"),
        (("revoke", "b"), 1, "client 'b' not found"),
    ],
)
def test_mistakes(cli, own_folder, arguments, code, said):
    cli("clients", "new", "a")
    before = (own_folder / "clients.toml").read_bytes()
    done = cli("clients", *arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert (own_folder / "clients.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "file", "said"),
    [
        (("revoke", "a"), "none.toml", "no such file"),
        (("list",), "none.toml", "No such file"),
        (("list",), "bad.toml", "bad.toml: not valid TOML"),
        (("new", "b"), "bad.toml", "not valid TOML"),
    ],
)
def test_mistakes_of_the_file(cli, own_folder, monkeypatch, arguments, file, said):
    (own_folder / "bad.toml").write_text("[[client]")
    monkeypatch.setenv("LORA_ROUTER_CLIENTS", file)
    done = cli("clients", *arguments)
    assert (done.code, said in done.err) == (2, True), done.err
    assert (own_folder / "bad.toml").read_text() == "[[client]"
