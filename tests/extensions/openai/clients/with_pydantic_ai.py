"""Pydantic AI: `python with_pydantic_ai.py URL`; prints what it saw as JSON."""

import json
import sys
from importlib.metadata import version

from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

text = "a medical question"
kind = "pydantic-ai-slim"
seen = {"version": f"{kind} {version(kind)}, openai {version('openai')}"}
provider = OpenAIProvider(base_url=sys.argv[1], api_key="none")
model = OpenAIChatModel("auto", provider=provider)


class Pet(BaseModel):
    """What the answer must be."""

    kind: bool


whole = Agent(model, instructions="Be brief.").run_sync(text)
said = whole.response
seen["whole"], seen["model"], seen["id"] = whole.output, said.model_name, said.provider_response_id
seen["tokens"] = whole.usage.total_tokens
streamed = Agent(model, instructions="Be brief.").run_stream_sync(text)
seen["streamed"] = list(streamed.stream_text())[-1]
seen["streamed_model"] = streamed.response.model_name

shaped = Agent(model, output_type=Pet)
seen["shaped"] = type(shaped.run_sync(text).output.kind).__name__
called = []


def weather(city: str) -> str:
    """The weather in a city."""
    called.append(city)
    return f"sunny in {city}"


seen["offered"] = Agent(model, instructions="Be brief.", tools=[weather]).run_sync(text).output
shaped = Agent(model, output_type=Pet, tools=[weather])
seen["shaped_offered"] = [type(shaped.run_sync(text).output.kind).__name__, len(called)]
native = Agent(model, output_type=NativeOutput(Pet), tools=[weather])
seen["native"] = type(native.run_sync(text).output.kind).__name__
responses = OpenAIResponsesModel("auto", provider=provider)
seen["response"] = Agent(responses, instructions="Be brief.").run_sync(text).output
seen["response_shaped"] = type(Agent(responses, output_type=Pet).run_sync(text).output.kind).__name__
try:
    Agent(OpenAIChatModel("nobody", provider=provider)).run_sync(text)
except ModelHTTPError as error:
    seen["unknown"] = [type(error).__name__, error.status_code]
print(json.dumps(seen))
