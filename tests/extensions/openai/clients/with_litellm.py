"""LiteLLM: `python with_litellm.py URL`; prints what it saw as JSON."""

import json
import os
import sys
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import fetches a list of prices

import litellm

url = sys.argv[1]
server = {"api_base": url, "api_key": "none", "num_retries": 0, "max_retries": 0}
text = "a medical question"
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
seen = {"version": f"litellm {version('litellm')}, openai {version('openai')}"}
unit = {"extra_body": {"routing": {"unit": "anna"}}}

whole = litellm.completion("openai/auto", messages, max_tokens=40, **unit, **server)
seen["whole"], seen["model"], seen["id"] = whole.choices[0].message.content, whole.model, whole.id
seen["adapter"] = whole._hidden_params["additional_headers"]["llm_provider-x-router-adapter"]
seen["tokens"] = whole.usage.total_tokens
seen["routing"] = getattr(whole, "routing", {}).get("adapter")

stream = litellm.completion("openai/auto", messages, max_tokens=40, stream=True, **unit, **server)
chunks = list(stream)
seen["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
seen["streamed_model"] = chunks[0].model
seen["streamed_adapter"] = stream._hidden_params["additional_headers"]["llm_provider-x-router-adapter"]

for provider in ("hosted_vllm", "litellm_proxy"):
    answer = litellm.completion(f"{provider}/medical", messages, max_tokens=40, **server)
    seen[provider] = [answer.choices[0].message.content, answer.model]
plain = litellm.text_completion(prompt=text, model="text-completion-openai/medical", **server)
seen["plain"] = plain.choices[0].text
litellm.completion("openai/auto", messages, user="dropped", extra_headers={"x-user-id": "berta"}, **server)

schema = {"type": "object", "properties": {"rainy": {"type": "boolean"}}, "required": ["rainy"]}
tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
asked = {"messages": messages, "tools": [tool], **server}
called = litellm.completion(
    "openai/auto", **asked, tool_choice="required", drop_params=True, thinking={"type": "enabled"}
)
call = called.choices[0].message.tool_calls[0].function
seen["called"] = [call.name, list(json.loads(call.arguments))]
chunks = list(litellm.completion("openai/auto", **asked, tool_choice="required", stream=True))
call = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message.tool_calls[0].function
seen["called_streamed"] = [call.name, list(json.loads(call.arguments))]
seen["offered"] = litellm.completion("openai/auto", **asked).choices[0].message.content
seen["embedded"] = len(litellm.embedding("openai/base", ["one", "two"], **server).data)

try:
    litellm.completion("openai/nobody", messages, **server)
except litellm.NotFoundError as error:
    seen["unknown"] = [type(error).__name__, error.status_code]
print(json.dumps(seen))
