"""The clients file: what it may say, whose a token is, and what is refused in one line."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.certificates import rule_of
from router.access.clients import (
    GIVEN,
    Client,
    Clients,
    Role,
    added,
    entry,
    hash_of,
    new_token,
    parse_clients,
    read_clients,
    removed,
)
from router.errors import AlreadyExists, ConfigError, NotFound

A, B = "a" * 64, "b" * 64
DOCUMENTED = Path(__file__).parents[2] / "docs" / "security.md"


def client(**more: object) -> str:
    """One entry as text."""
    values = {"id": "billing", "token_sha256": [A], **more}
    lines = [f"{key} = {value if key == 'expires' else repr(value)}" for key, value in values.items()]
    return "\n".join(["[[client]]", *lines, ""])


def test_an_entry_is_read() -> None:
    more = {"cert": "billing.svc", "feedback": "texts", "expires": "2027-01-01T00:00:00+01:00"}
    (found,) = parse_clients(client(roles=["infer", "admin"], **more)).all
    assert found.feedback == "texts"
    assert (found.id, found.cert, found.token_sha256) == ("billing", "dns:billing.svc", (A,))
    assert found.roles == {Role.INFER, Role.ADMIN}
    assert not found.expired(1798757999)
    assert found.expired(1798758000)  # 2026-12-31T23:00:00Z


def test_absent_is_nothing() -> None:
    (found,) = parse_clients(client()).all
    assert found.roles == frozenset()
    assert not found.expired(1e12)
    assert found.feedback == "labels"
    assert parse_clients("").all == ()


@pytest.mark.parametrize(
    ("own", "of_tenant", "kept"),
    [
        ({}, {}, "labels"),
        ({}, {"feedback": "texts"}, "texts"),
        ({"feedback": "labels"}, {"feedback": "texts"}, "labels"),
        ({"feedback": "texts"}, {"feedback": "off"}, "off"),
        ({"feedback": "texts"}, {}, "texts"),
    ],
)
def test_what_is_kept_of_feedback_is_the_weaker_of_client_and_tenant(
    own: dict[str, str], of_tenant: dict[str, str], kept: str
) -> None:
    (found,) = parse_clients(client(tenant="acme", **own) + tenant(id="acme", **of_tenant)).all
    assert found.feedback == kept


def test_the_example_of_the_page_is_a_clients_file() -> None:
    text = DOCUMENTED.read_text().partition("```toml\n")[2].partition("```")[0]
    assert [one.id for one in parse_clients(text).all] == ["billing"]


def tenant(**more: object) -> str:
    """One entry of a tenant as text."""
    return "\n".join(["[[tenant]]", *(f"{key} = {value!r}" for key, value in more.items()), ""])


def test_a_tenant_is_its_clients_and_what_they_share() -> None:
    text = client(tenant="acme") + client(id="two", token_sha256=[B], tenant="acme") + tenant(id="nobodys")
    found = parse_clients(text + tenant(id="acme", tokens_per_minute=7, share=0.5))
    assert {(one.tenant, one.group.tokens_per_minute, one.share) for one in found.all} == {("acme", 7, 0.5)}
    assert [one.id for one in found.tenants] == ["nobodys", "acme"]
    (alone,) = parse_clients(client(share=3)).all
    assert (alone.tenant, alone.group.id, alone.group.share, alone.share) == ("billing", "billing", 3.0, 3.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[client]", "not valid TOML"),
        ("clients = 1", "unknown key 'clients'"),
        ("client = 1", "under [[client]]"),
        ("client = [1]", "under [[client]]"),
        ("[[client]]\ntoken_sha256 = []", "[[client]] number 1: needs an id"),
        (client(id="Billing"), "client 'Billing': id must have"),
        (client(id=7), "[[client]] number 1: id must be"),
        (client(id="a_b"), "id must have"),
        (client(group=1), "group must be"),
        (client(rolls=["infer"]), "unknown key 'rolls'; 'roles'?"),
        (client(roles=["root"]), "unknown role 'root'; there are admin, infer, observe"),
        (client(roles=["open"]), "unknown role 'open'"),
        (client(roles="admin"), "roles must be"),
        (client(token_sha256=["lrk_billing_x"]), "the hash, not the token"),
        (client(token_sha256=[A.upper()]), "the hash, not the token"),
        (client(token_sha256=A), "token_sha256 must be"),
        (client(token_sha256=[]), "needs token_sha256 or cert"),
        (client(cert=""), "cert must be"),
        (client(expires="2027-01-01"), "expires must be a valid datetime"),
        (client(expires=datetime(2027, 1, 1)), "timezone"),
        (client() + client(token_sha256=[B]), "same id: 'billing'"),
        (client() + client(id="other"), "same token_sha256"),
        (client(cert="x") + client(id="other", token_sha256=[B], cert="x"), "same cert: 'dns:x'"),
        ("tenant = 1", "tenants stand under [[tenant]]"),
        (tenant(share=1), "[[tenant]] number 1: needs an id"),
        (tenant(id="A"), "tenant 'A': id must have"),
        (tenant(id="a", adapters=["x"]), "tenant 'a': unknown key 'adapters'"),
        (tenant(id="a") * 2, "two tenants have the same id: 'a'"),
        (tenant(id="a", max_concurrent=0), "max_concurrent must be greater"),
        (client(experiments=["A"]), "experiments has names such as"),
        (client(feedback="all"), "feedback must be 'off', 'labels' or 'texts'"),
        (client(feedback=1), "feedback must be 'off', 'labels' or 'texts'"),
        (client(share=0), "share must be greater"),
        (client(share=1001), "share must be less"),
        (client(tenant="acme", share=2), "client 'billing': share is its tenant's"),
        (client(share=2) + tenant(id="billing"), "share is its tenant's"),
        (client(share=2) + client(id="two", token_sha256=[B], tenant="billing"), "share is its tenant's"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_clients(text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@given(st.text())
def test_any_text_is_clients_or_a_config_error(text: str) -> None:
    try:
        parse_clients(text)
    except ConfigError:
        with pytest.raises((tomllib.TOMLDecodeError, AssertionError)):
            assert not tomllib.loads(text)


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(client())
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="every user"):
        read_clients(path)
    path.chmod(0o600)
    assert len(read_clients(path).all) == 1
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_clients(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_clients(tmp_path / "none.toml")


def test_whose_a_token_is() -> None:
    mine, second, others = new_token("billing"), new_token("billing"), new_token("search")
    clients = Clients(
        [
            Client("billing", (hash_of(mine), hash_of(second))),
            Client("search", (hash_of(others),)),
            Client("by-cert", cert="x", roles=GIVEN),
        ]
    )
    assert [clients.by_token(one).id for one in (mine, second, others)] == ["billing", "billing", "search"]  # type: ignore[union-attr]
    swapped = mine.replace("billing", "search")
    for wrong in ("", "lrk_by-cert_" + "A" * 43, swapped, new_token("billing"), new_token("nobody")):
        assert clients.by_token(wrong) is None
    assert len({mine, second}) == 2


def test_whose_a_certificate_is() -> None:
    clients = Clients([Client("a", cert="dns:a.svc"), Client("b", cert="dns:b.svc")])
    assert clients.by_names(["dns:x", "dns:a.svc"]).id == "a"  # type: ignore[union-attr]
    others = (["dns:A.svc"], ["dns:a.svc.example"], ["dns:*.svc"], ["uri:a.svc"], ["email:a.svc"], ["a.svc"])
    for names in ([], *others, ["dns:a.svc", "dns:b.svc"]):
        assert clients.by_names(names) is None


@pytest.mark.parametrize(
    "date",
    ["9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59.999999-00:01", "0001-01-01T00:00:00+00:01"],
)
def test_a_date_beyond_the_calendar_is_told_as_such(date: str) -> None:
    with pytest.raises(ConfigError, match=r"client 'billing': expires is a date beyond the calendar"):
        parse_clients(client(expires=date))


@pytest.mark.parametrize("date", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_the_ends_of_the_calendar_are_dates(date: str) -> None:
    (found,) = parse_clients(client(expires=date)).all
    assert found.expired(0.0) == date.startswith("0001")


# -- Entries added to and taken out of a file that people write, too.


WRITTEN = f"""# who may call

[[client]]  # the shop
id = "shop"
token_sha256 = ["{A}"]
roles = ["infer"]

  [[ client ]]
id = 'other'  # 'shop' is another
token_sha256 = [
  "{B}",
]

# the end
"""


def test_an_entry_reads_as_what_was_said() -> None:
    until = datetime(2027, 1, 1, tzinfo=UTC)
    text = entry("x", A, "", ("infer", "admin"), ("m-*",), until) + entry("y", cert='a"b\\c')
    first, second = parse_clients(text).all
    assert (first.id, first.token_sha256, first.expires) == ("x", (A,), until)
    assert first.roles == {Role.INFER, Role.ADMIN}
    assert "m-1" in first.adapters
    assert (second.cert, second.roles) == ('dns:a"b\\c', frozenset())


def test_what_people_wrote_stays() -> None:
    text = added(WRITTEN, entry("new", "c" * 64))
    assert text.startswith(WRITTEN.rstrip())
    assert [one.id for one in parse_clients(text).all] == ["shop", "other", "new"]
    text = removed(text, "shop")
    assert [one.id for one in parse_clients(text).all] == ["other", "new"]
    assert "# who may call" in text
    assert removed(added("", entry("new", A)), "new") == ""


def test_what_is_said_of_a_tenant_stays() -> None:
    text = f'{WRITTEN}\n[[tenant]]\nid = "acme"\n' + entry("x", "c" * 64, tenant="acme", experiments=("e-*",))
    (*_, client) = parse_clients(text).all
    assert (client.tenant, client.group.id, "e-1" in client.experiments) == ("acme", "acme", True)
    for name in ("other", "x", "shop"):
        text = removed(text, name)
    assert parse_clients(text).all == ()
    assert [tenant.id for tenant in parse_clients(text).tenants] == ["acme"]


def test_what_cannot_be() -> None:
    with pytest.raises(AlreadyExists):
        added(WRITTEN, entry("shop", "c" * 64))
    with pytest.raises(ConfigError, match="same token_sha256"):
        added(WRITTEN, entry("third", A))
    with pytest.raises(ConfigError, match="id must have"):
        added(WRITTEN, entry("a b", A))
    with pytest.raises(ConfigError, match="unknown role"):
        added("", entry("a", A, roles=["root"]))
    with pytest.raises(NotFound):
        removed(WRITTEN, "nobody")


def test_lines_that_cannot_be_told_apart_are_left_alone() -> None:
    inline = f'client = [{{id = "a", cert = "x"}}, {{id = "b", token_sha256 = ["{A}"]}}]\n'
    issuer = '[[issuer]]\nurl = "https://a.example"\naudience = "x"\n'
    issued = '[[client]]\nid = "a"\nissuer = "https://a.example"\nsubject = """\n[[client]]\nid = "b"\n"""\n'
    hidden = f"{issuer}{issued}{entry('b', A)}"
    for text in (inline, hidden):
        with pytest.raises(ConfigError, match="by hand"):
            removed(text, "a")


@given(st.text())
def test_any_name_in_a_certificate_is_kept_or_refused(name: str) -> None:
    try:
        text = added("", entry("a", cert=name or "x"))
    except ConfigError:
        assert not name.isprintable() or not name.isascii() or name.endswith(":") or name.startswith("ip:")
        return
    assert parse_clients(text).all[0].cert == rule_of(name or "x")
