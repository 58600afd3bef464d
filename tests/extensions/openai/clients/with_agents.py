"""OpenAI's Agents SDK: `python with_agents.py URL`; prints what it saw as JSON."""

import asyncio
import json
import sys
from importlib.metadata import version

from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, NotFoundError
from pydantic import BaseModel

text = "a medical question"
seen = {"version": f"openai-agents {version('openai-agents')}, openai {version('openai')}"}
called = []


class Pet(BaseModel):
    """What the answer must be."""

    kind: bool


@function_tool
def weather(rainy: bool) -> str:
    """The weather."""
    called.append(rainy)
    return "sunny"


async def main() -> None:
    set_tracing_disabled(True)  # traces would go to OpenAI
    set_default_openai_client(AsyncOpenAI(base_url=sys.argv[1], api_key="none"))
    for api in ("responses", "chat_completions"):
        set_default_openai_api(api)
        seen[api] = await asked()
    print(json.dumps(seen))


async def asked() -> dict[str, object]:
    """What agents answer over the API that is set."""
    plain = Agent("Helper", instructions="Be brief.", model="auto")
    whole = await Runner.run(plain, text)
    stream = Runner.run_streamed(plain, text)
    async for _ in stream.stream_events():
        pass
    must_call = Agent("Helper", instructions="Be brief.", model="auto", tools=[weather])
    must_call.model_settings = ModelSettings(tool_choice="required")
    called.clear()
    after = await Runner.run(must_call, text)
    shaped = await Runner.run(Agent("Helper", model="auto", output_type=Pet), text)
    offered = await Runner.run(Agent("Helper", instructions="Be brief.", model="auto", tools=[weather]), text)
    try:
        await Runner.run(Agent("Helper", model="nobody"), text)
    except NotFoundError as error:
        unknown = [type(error).__name__, error.code]
    return {
        "whole": whole.final_output,
        "streamed": stream.final_output,
        "called": len(called),
        "after_call": after.final_output,
        "offered": offered.final_output,
        "shaped": type(shaped.final_output.kind).__name__,
        "tokens": whole.context_wrapper.usage.total_tokens > 0,
        "unknown": unknown,
    }


asyncio.run(main())
