"""langchain-openai: `python with_langchain.py URL`; prints what it saw as JSON."""

import json
import sys
from importlib.metadata import version

import openai
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url = sys.argv[1]
server = {"base_url": url, "api_key": "none", "max_retries": 0}
text = "a medical question"
kind = "langchain-openai"
seen = {"version": f"langchain {version('langchain')}, {kind} {version(kind)}, openai {version('openai')}"}


class Pet(BaseModel):
    """What the answer must be."""

    kind: bool


def weather(rainy: bool) -> str:
    """The weather."""
    return "sunny"


chat = ChatOpenAI(
    model="auto",
    max_tokens=40,
    include_response_headers=True,
    extra_body={"routing": {"unit": "anna"}},
    **server,
)
whole = chat.invoke([("system", "Be brief."), ("user", text)])
seen["whole"], seen["model"] = whole.content, whole.response_metadata["model_name"]
seen["id"] = whole.response_metadata["id"]
seen["adapter"] = whole.response_metadata["headers"]["x-router-adapter"]
seen["tokens"] = whole.usage_metadata["total_tokens"]

chunks = list(chat.stream([("system", "Be brief."), ("user", text)]))
seen["streamed"] = "".join(chunk.content for chunk in chunks)
seen["streamed_model"] = "".join(chunk.response_metadata.get("model_name", "") for chunk in chunks)
seen["streamed_adapter"] = next(
    chunk.response_metadata["headers"]["x-router-adapter"]
    for chunk in chunks
    if "headers" in chunk.response_metadata
)

seen["plain"] = OpenAI(model="medical", max_tokens=40, **server).invoke(text)
shaped = ChatOpenAI(model="base", **server).with_structured_output(Pet)
seen["shaped"] = type(shaped.invoke(text).kind).__name__

responses = ChatOpenAI(model="auto", use_responses_api=True, **server)
asked = [("system", "Be brief."), ("user", text)]
seen["response"] = responses.invoke(asked).text
seen["response_streamed"] = "".join(chunk.text for chunk in responses.stream(asked))
embeddings = OpenAIEmbeddings(model="encoder", check_embedding_ctx_length=False, **server)
seen["embedded"] = len(embeddings.embed_documents(["one", "two"]))

try:
    ChatOpenAI(model="nobody", **server).invoke(text)
except openai.NotFoundError as error:
    seen["unknown"] = [type(error).__name__, error.code]
called = chat.bind_tools([Pet], tool_choice="required").invoke(text).tool_calls[0]
seen["called"] = [called["name"], type(called["args"]["kind"]).__name__]
chunks = chat.bind_tools([Pet], tool_choice="Pet").stream(text)
total = next(chunks)
for chunk in chunks:
    total += chunk
seen["called_streamed"] = [call["name"] for call in total.tool_calls if call["args"] == called["args"]]
offered = chat.bind_tools([Pet]).invoke([("system", "Be brief."), ("user", text)])
seen["offered"] = [offered.content == whole.content, offered.tool_calls]

agent = create_agent(ChatOpenAI(model="auto", **server), [weather], system_prompt="Be brief.")
seen["agent"] = agent.invoke({"messages": [("user", text)]})["messages"][-1].content
seen["agent_streamed"] = "".join(
    chunk.content for chunk, _ in agent.stream({"messages": [("user", text)]}, stream_mode="messages")
)
shaper = create_agent(ChatOpenAI(model="auto", **server), [weather], response_format=Pet)
seen["agent_shaped"] = type(
    shaper.invoke({"messages": [("user", text)]})["structured_response"].kind
).__name__
print(json.dumps(seen))
