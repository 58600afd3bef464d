"""Entries added to and taken out of a file that people write, too."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.certificates import rule_of
from router.access.clients import Role, added, entry, parse_clients, removed
from router.errors import AlreadyExists, ConfigError, NotFound

A, B = "a" * 64, "b" * 64
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
