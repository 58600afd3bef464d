"""Experiments as OpenFeature's flags: the arms that requests get, and only for who may know of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from router.access.clients import Role
from router.extensions.experiments.assignment import place_of, running_of
from router.extensions.experiments.model import ArmSpec, Experiment, ExperimentPhase, Lifecycle, Mode
from router.extensions.ofrep import flags
from router.plugins import Hooks, PluginHost
from router.plugins.tables import SettingPlace, SettingsTable, SettingValue
from router.types import Request, RoutingHints
from tests.extensions.experiments.plans import plan
from tests.security.worlds import answered, begun, world
from tests.server.helpers import Connect, Start, until
from tests.server.http_helpers import Http

FLAGS = "/ofrep/v1/evaluate/flags"
UNITS = [f"user-{number}" for number in range(24)]


@pytest.fixture
async def at(
    tmp_path: Path, start_server: Start, connect: Connect, http: Http
) -> AsyncIterator[SimpleNamespace]:
    """A server with experiments of two tenants, `ask(flag, unit)` it over HTTP as somebody."""
    async with world(tmp_path, start_server, connect, http_listen="127.0.0.1:0") as made:
        client = http(made.app)

        async def ask(key: str, unit: str | None = "anna", who: str = "mine", **context: Any) -> Any:
            body = {"context": {**context, **({} if unit is None else {"targetingKey": unit})}}
            headers = dict(getattr(made.clients, who)) if who else {}
            return await client.post(f"{FLAGS}/{key}" if key else FLAGS, json=body, headers=headers)

        yield SimpleNamespace(**vars(made), client=client, ask=ask)


async def test_the_variant_is_the_arm_that_requests_get(at: SimpleNamespace) -> None:
    said, got = {}, {}
    for unit in UNITS:
        response = await at.ask("acme-tone", unit)
        assert response.status_code == 200
        said[unit] = response.json()["variant"]
        answer = await answered(at, at.clients.mine, "a medical question", unit)
        got[unit] = answer.decision.arm
    assert said == got
    assert set(said.values()) == {"old", "new"}


async def test_all_that_is_told(at: SimpleNamespace) -> None:
    unit, *_ = [unit for unit in UNITS if await variant(at, unit) == "new"]
    response = await at.ask("acme-tone", unit)
    assert response.json() == {
        "key": "acme-tone",
        "value": "new",
        "variant": "new",
        "reason": "SPLIT",
        "metadata": {
            "phase": 1,
            "control": False,
            "share": 0.5,
            "adapter": "adapters/medical/versions/1.1.0",
        },
    }


async def variant(at: SimpleNamespace, unit: str) -> str:
    return str((await at.ask("acme-tone", unit)).json()["variant"])


async def test_asking_is_no_exposure(at: SimpleNamespace) -> None:
    for unit in UNITS:
        await at.ask("acme-tone", unit)
        await at.ask("", unit)
    await at.live.recorder.flush()
    assert not any(rows.exposures for rows in at.store.rows.values())
    assert not at.live.counts.exposures
    assert not at.live.counts.unit_missing


async def test_all_flags_that_the_client_sees(at: SimpleNamespace) -> None:
    for who, keys in (
        ("mine", ["acme-tone"]),
        ("other", ["legal-tone"]),
        ("ops", ["acme-tone", "legal-tone"]),
        ("blind", []),
    ):
        flags = (await at.ask("", who=who)).json()["flags"]
        assert [flag["key"] for flag in flags] == keys
        for flag in flags:
            assert flag == (await at.ask(flag["key"], who=who)).json()


@pytest.mark.parametrize("key", ["legal-tone", "acme-hidden", "nobody"])
async def test_what_is_not_there_for_the_client_is_not_found(at: SimpleNamespace, key: str) -> None:
    response = await at.ask(key)
    assert response.status_code == 404
    body = response.json()
    assert (body["key"], body["errorCode"]) == (key, "FLAG_NOT_FOUND")
    assert body["errorDetails"].replace(key, "nobody") == (await at.ask("nobody")).json()["errorDetails"]


async def test_one_that_has_not_begun_is_no_flag(at: SimpleNamespace) -> None:
    await begun(at, "acme-draft", at.clients.mine, start=False)
    assert (await at.ask("acme-draft")).status_code == 404


@pytest.mark.parametrize("unit", [None, "", "anonymous", " "])
async def test_without_a_unit(at: SimpleNamespace, unit: str | None) -> None:
    response = await at.ask("acme-tone", unit)
    assert (response.status_code, response.json()["errorCode"]) == (400, "TARGETING_KEY_MISSING")
    assert response.json()["key"] == "acme-tone"
    bulk = await at.ask("", unit)
    code = bulk.json()["errorCode"] if bulk.status_code == 400 else bulk.json()["flags"][0]["errorCode"]
    assert code == "TARGETING_KEY_MISSING"


async def test_an_experiment_whose_unit_is_a_label(at: SimpleNamespace) -> None:
    await begun(at, "acme-session", at.clients.mine, unit_label="session", route="base", arms=arms_of_base())
    missing = await at.ask("acme-session", "anna")
    assert (missing.status_code, missing.json()["errorCode"]) == (400, "TARGETING_KEY_MISSING")
    assert "'session'" in missing.json()["errorDetails"]
    flags = {flag["key"]: flag for flag in (await at.ask("", "anna")).json()["flags"]}
    assert flags["acme-session"]["errorCode"] == "TARGETING_KEY_MISSING"
    assert flags["acme-tone"]["reason"] == "SPLIT"
    found = {(await at.ask("acme-session", unit, session=7)).json()["variant"] for unit in UNITS}
    assert len(found) == 1


def arms_of_base() -> tuple[ArmSpec, ...]:
    return tuple(replace(arm, adapter=None) if arm.name == "old" else arm for arm in plan().arms)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "PARSE_ERROR"),
        (b"[]", "PARSE_ERROR"),
        (b"[" * 50_000, "PARSE_ERROR"),
        (b'{"context": 1}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": 1}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "%s"}}' % (b"x" * 300), "INVALID_CONTEXT"),
        (b"", "TARGETING_KEY_MISSING"),
        (b"{}", "TARGETING_KEY_MISSING"),
    ],
)
async def test_bodies_that_are_wrong(at: SimpleNamespace, body: bytes, code: str) -> None:
    headers = {**dict(at.clients.mine), "content-type": "application/json"}
    for path in (FLAGS, f"{FLAGS}/acme-tone"):
        response = await at.client.post(path, content=body, headers=headers)
        assert (response.status_code, response.json()["errorCode"]) == (400, code)


async def test_a_page_of_another_origin_is_not_heard(at: SimpleNamespace) -> None:
    headers = {**dict(at.clients.mine), "content-type": "text/plain"}
    response = await at.client.post(FLAGS, content=b"{}", headers=headers)
    assert (response.status_code, response.json()["errorCode"]) == (415, "PARSE_ERROR")


async def test_who_may_not_is_refused(at: SimpleNamespace) -> None:
    response = await at.ask("acme-tone", who="")
    assert (response.status_code, response.json()["errorCode"]) == (401, "GENERAL")
    assert response.json()["errorDetails"].startswith("TOKEN_MISSING: ")
    assert {(row.role, row.gated) for row in flags.ROWS.values()} == {(Role.INFER, True)}


async def test_while_the_store_is_down_nobody_has_an_arm(at: SimpleNamespace) -> None:
    at.store.down = True
    await until(lambda: bool(at.live.availability.problem))
    response = await at.ask("acme-tone")
    assert (response.status_code, response.json()["errorCode"]) == (503, "GENERAL")
    assert response.headers["retry-after"]
    assert response.json()["errorDetails"].startswith("STORE_DOWN: ")
    at.store.down = False
    await until(lambda: not at.live.availability.problem)
    assert (await at.ask("acme-tone")).status_code == 200


async def test_quotas_count_questions(
    tmp_path: Path, start_server: Start, connect: Connect, http: Http
) -> None:
    more = '[[tenant]]\nid = "acme"\nrequests_per_minute = 4\n'
    async with world(tmp_path, start_server, connect, more=more, http_listen="127.0.0.1:0") as made:
        got = [await asked(http(made.app), made) for _ in range(4)]
        assert [response.status_code for response in got] == [200, 200, 429, 429]
        assert got[-1].headers["retry-after"]
        assert got[-1].json()["errorDetails"].startswith("QUOTA: ")


async def asked(client: httpx2.AsyncClient, made: SimpleNamespace) -> httpx2.Response:
    body = {"context": {"targetingKey": "anna"}}
    return await client.post(f"{FLAGS}/acme-tone", json=body, headers=dict(made.clients.mine))


async def test_without_experiments_it_says_how_to_get_them(start_server: Start, http: Http) -> None:
    server = await start_server(http_listen="127.0.0.1:0")
    response = await http(server).post(f"{FLAGS}/x", json={"context": {"targetingKey": "anna"}})
    assert (response.status_code, response.json()["errorCode"]) == (400, "GENERAL")
    assert "experiments are off" in response.json()["errorDetails"]


# -- Where a unit stands


def stands(spec: Any, unit: str, holdout: float = 0.0) -> Any:
    """The place of a unit in an experiment with that plan."""
    experiment = Experiment(
        "trial", spec, Lifecycle.RUNNING, phases=(ExperimentPhase(1, 0.0, "e", "v", spec),)
    )
    running = running_of(experiment, lambda purpose: f"salt of {purpose}", holdout)
    assert running is not None
    return place_of(running, Request("", routing=RoutingHints(unit=unit)))


def test_a_unit_outside_has_no_value() -> None:

    flag = flags.flag_json(stands(plan(enrolment=0.0), "anna"))
    assert flag == {
        "key": "trial",
        "reason": "DEFAULT",
        "variant": "",
        "metadata": {"phase": 1, "outside": "not_enrolled"},
    }


def test_the_holdout_is_a_flag_of_its_own() -> None:
    arms = (ArmSpec("held", 0.3), ArmSpec("free", 0.7))
    spec = plan(route="", mode=Mode.HOLDOUT, arms=arms, control="held")
    places = [stands(spec, unit, holdout=0.3) for unit in UNITS]
    assert {(place.arm, place.control, round(place.share, 6), place.answers) for place in places} == {
        ("held", True, 0.3, ""),
        ("free", False, 0.7, ""),
    }
    assert stands(spec, "", holdout=0.3).outside == "unit_missing"


async def test_the_setting_enabled_turns_it_off(start_web: Start, http: Http) -> None:
    tables = {
        "ofrep": SettingsTable([SettingValue("enabled", "false", SettingPlace.FLAG, "ofrep.enabled", "flag")])
    }
    server = await start_web(hooks=Hooks(PluginHost([], tables=tables, built_in=True)))
    assert (await http(server).post(FLAGS, json={})).status_code == 404
