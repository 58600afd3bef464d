"""OpenAI's client, unchanged: `pip install openai`, `lora-router serve`, then
`python examples/openai_client.py [URL] [TEXT]`.
"""

import sys

from openai import NotFoundError, OpenAI

client = OpenAI(
    base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1",
    api_key="none",  # where the server asks who calls: the client's token
)
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "Which ICD-10-CM chapter does Beard ringworm belong to?"

# "auto" is routed; an adapter's name, NAME@VERSION or "base" is taken at its word.
answer = client.chat.completions.create(model="auto", messages=[{"role": "user", "content": QUESTION}])
print(f"[{answer.model}] {answer.choices[0].message.content}")

stream = client.chat.completions.create(
    model="base",
    messages=[{"role": "user", "content": QUESTION}],
    max_tokens=32,
    stream=True,
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)
print()

# The field `routing` says what OpenAI's API has no words for, both ways.
explained = client.chat.completions.create(
    model="auto",
    messages=[{"role": "user", "content": QUESTION}],
    user="user-17",  # the unit of experiments
    extra_body={"routing": {"explain": True}},
)
routing = explained.model_extra["routing"]
print(routing["reason"], [vote["classifier"] for vote in routing["votes"]])

try:
    client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": QUESTION}])
except NotFoundError as error:
    print(f"{error.status_code} {error.code}")
