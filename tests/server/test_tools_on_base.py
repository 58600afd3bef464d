"""Functions on the default base, whose chat template has no form for them: calls that are required are valid,
and functions that may be called change neither answers nor routing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jsonschema import validate

from router.client import Client, FinishReason, Tool, ToolCall, Turn
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXT, NUMBER = {"type": "string"}, {"type": "number"}


def tool(name: str, description: str, required: list[str], **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(name, description, json.dumps(schema))


UNIT = {"enum": ["celsius", "fahrenheit"]}
PEOPLE = {"type": "array", "items": TEXT}
WEATHER = tool("get_weather", "Get the weather in a city.", ["city"], city=TEXT, unit=UNIT)
MAIL = tool("send_email", "Send an email.", ["to", "subject", "body"], to=TEXT, subject=TEXT, body=TEXT)
ADD = tool("add", "Add two numbers.", ["a", "b"], a=NUMBER, b=NUMBER)
SEARCH = tool("web_search", "Search the web.", ["query"], query=TEXT, count={"type": "integer"})
EVENT = tool("create_event", "Create an event.", ["title", "start"], title=TEXT, attendees=PEOPLE, start=TEXT)
TOOLS = {one.name: one for one in (WEATHER, MAIL, ADD, SEARCH, EVENT)}
ASKED = [
    ("What is the weather in Paris?", WEATHER),
    ("Is it raining in Tokyo right now? Use fahrenheit.", WEATHER),
    ("Send anna@example.com an email that the meeting is moved to Monday.", MAIL),
    ("What is 17 plus 25?", ADD),
    ("Search the web for the tallest mountain in Africa.", SEARCH),
    ("Create an event 'Lunch' with Bob and Alice at noon tomorrow.", EVENT),
    ("How warm is it in Berlin?", WEATHER),
    ("Add 3.5 and 4.", ADD),
    ("Find me three articles about LoRA.", SEARCH),
    ("Write bob@corp.io that I am ill today, subject Absence.", MAIL),
]
PLAIN = ["Which ICD-10 chapter covers acute bronchitis?", "Translate to French: a fast mail reader", "Hi!"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tmp_path_factory.mktemp("tools")) as (_, address), Client(address) as made:
        yield made


def test_twenty_of_twenty_required_calls_are_valid(client: Client) -> None:
    def called(text: str, choice: str) -> None:
        answer = client.generate(text, tools=list(TOOLS.values()), tool_choice=choice, timeout=120)
        assert answer.finish_reason is FinishReason.TOOL_CALLS, (text, choice, answer)
        (call,) = answer.tool_calls
        assert choice in ("required", call.name)
        validate(json.loads(call.arguments), json.loads(TOOLS[call.name].parameters))

    with ThreadPoolExecutor(20) as pool:
        wanted = [(text, choice) for text, one in ASKED for choice in ("required", one.name)]
        assert len(list(pool.map(called, *zip(*wanted, strict=True)))) == 20


def test_tools_that_may_be_called_change_neither_answer_nor_routing(client: Client) -> None:
    for text in PLAIN:
        plain = client.generate(text, max_tokens=40)
        offered = client.generate(text, max_tokens=40, tools=list(TOOLS.values()))
        assert (offered.text, offered.tool_calls) == (plain.text, ())
        assert offered.decision.adapter == plain.decision.adapter
        decided = [client.route(text, **more) for more in ({}, {"tools": list(TOOLS.values())})]
        assert decided[0].confidence == decided[1].confidence
        assert [dict(vote.scores) for vote in decided[0].votes] == [dict(v.scores) for v in decided[1].votes]


def test_an_answer_follows_from_the_result_of_a_call(client: Client) -> None:
    call = ToolCall("call_1", "get_weather", '{"city": "Paris"}')
    turns = [
        Turn("user", "What is the weather in Paris?"),
        Turn("assistant", "", (call,)),
        Turn("tool", "22 degrees and sunny", call_id="call_1"),
    ]
    answer = client.generate(turns, adapter="base", tools=[WEATHER], max_tokens=40)
    assert "22" in answer.text
    assert client.route(turns, tools=[WEATHER]).adapter == client.route(turns[0].text).adapter
