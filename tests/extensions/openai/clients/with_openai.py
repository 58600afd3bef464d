"""OpenAI's client for Python: `python with_openai.py URL`; prints what it saw as JSON."""

import json
import sys
from importlib.metadata import version

import openai
from pydantic import BaseModel

text = "a medical question"
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
seen = {"version": f"openai {version('openai')}"}
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
asked = {"model": "auto", "messages": messages, "max_completion_tokens": 40, "user": "anna"}


class Pet(BaseModel):
    """What the answer must be."""

    kind: bool


raw = client.chat.completions.with_raw_response.create(**asked)
whole = raw.parse()
seen["whole"], seen["model"], seen["id"] = whole.choices[0].message.content, whole.model, whole.id
seen["adapter"] = raw.headers["x-router-adapter"]
seen["tokens"] = whole.usage.total_tokens
seen["routing"] = whole.model_extra["routing"]["adapter"]

with client.chat.completions.stream(**asked) as stream:
    chunks = [event.chunk for event in stream if event.type == "chunk"]
    seen["streamed"] = stream.get_final_completion().choices[0].message.content
seen["streamed_model"] = chunks[0].model
seen["streamed_adapter"] = chunks[0].model_extra["routing"]["adapter"]

parsed = client.chat.completions.parse(model="base", messages=messages, response_format=Pet)
seen["parsed"] = type(parsed.choices[0].message.parsed.kind).__name__
tool = openai.pydantic_function_tool(Pet)
called = client.chat.completions.parse(model="base", messages=messages, tools=[tool], tool_choice="required")
call = called.choices[0].message.tool_calls[0]
seen["called"] = [call.function.name, type(call.function.parsed_arguments.kind).__name__]
result = {"role": "tool", "tool_call_id": call.id, "content": "a cat"}
after = [*messages, called.choices[0].message.model_dump(exclude_none=True), result]
seen["after_call"] = client.chat.completions.create(model="base", messages=after, tools=[tool]).model

response = client.responses.create(model="auto", instructions="Be brief.", input=text)
seen["response"] = [response.output_text, response.model]
with client.responses.stream(model="auto", instructions="Be brief.", input=text) as events:
    seen["response_streamed"] = [event.type for event in events][-1]
seen["response_parsed"] = type(
    client.responses.parse(model="base", input=text, text_format=Pet).output_parsed.kind
).__name__
seen["embedded"] = len(client.embeddings.create(model="encoder", input=["one", "two"]).data)
plain = client.completions.create(model="medical", prompt=text, n=2)
seen["plain"] = [choice.text for choice in plain.choices]
seen["models"] = [model.id for model in client.models.list()][:2]

refused = {
    "unknown": {"model": "nobody"},
    "field": {"extra_body": {"top_kk": 1}},
    "value": {"temperature": -1},
    "long": {"messages": [{"role": "user", "content": "word " * 4000}]},
}
seen["errors"] = {}
for name, fields in refused.items():
    try:
        client.chat.completions.create(**asked | fields)
    except openai.APIStatusError as error:
        seen["errors"][name] = [type(error).__name__, error.code, error.param]
print(json.dumps(seen))
