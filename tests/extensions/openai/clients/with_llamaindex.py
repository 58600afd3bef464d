"""LlamaIndex's OpenAILike: `python with_llamaindex.py URL`; prints what it saw as JSON."""

import json
import sys
from importlib.metadata import version

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url = sys.argv[1]
server = {"api_base": url, "api_key": "none", "max_retries": 0, "context_window": 2048}
text = "a medical question"
kind = "llama-index-llms-openai-like"


def weather(rainy: bool) -> str:
    """The weather."""
    return "sunny"


seen = {"version": f"{kind} {version(kind)}, openai {version('openai')}"}
unit = {"extra_body": {"routing": {"unit": "anna"}}}
messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=text)]

chat = OpenAILike(model="auto", is_chat_model=True, max_tokens=40, additional_kwargs=unit, **server)
whole = chat.chat(messages)
seen["whole"], seen["model"], seen["id"] = whole.message.content, whole.raw.model, whole.raw.id
seen["adapter"] = whole.raw.model_extra["routing"]["adapter"]
seen["tokens"] = whole.raw.usage.total_tokens

events = list(chat.stream_chat(messages))
seen["streamed"] = "".join(event.delta or "" for event in events)
seen["streamed_model"] = events[-1].raw.model
seen["streamed_adapter"] = events[0].raw.model_extra["routing"]["adapter"]

plain = OpenAILike(model="medical", max_tokens=40, **server)  # completions, unless told that it chats
seen["plain"] = plain.complete(text).text
seen["plain_streamed"] = list(plain.stream_complete(text))[-1].text

caller = OpenAILike(model="auto", is_chat_model=True, is_function_calling_model=True, **server)
tool = FunctionTool.from_defaults(weather)
answer = caller.chat_with_tools([tool], text, tool_required=True)
call = caller.get_tool_calls_from_response(answer)[0]
seen["called"] = [call.tool_name, type(call.tool_kwargs["rainy"]).__name__]

try:
    OpenAILike(model="nobody", is_chat_model=True, **server).chat(messages)
except openai.NotFoundError as error:
    seen["unknown"] = [type(error).__name__, error.code]
print(json.dumps(seen))
