"""Instructor: `python with_instructor.py URL`; prints what it saw as JSON."""

import json
import sys
from importlib.metadata import version

import instructor
from openai import OpenAI
from pydantic import BaseModel

text = "a medical question"
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
seen = {"version": f"instructor {version('instructor')}, openai {version('openai')}"}
server = OpenAI(base_url=sys.argv[1], api_key="none")


class Pet(BaseModel):
    """What the answer must be."""

    kind: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(server, mode=mode)
    pet, said = client.create_with_completion(model="auto", messages=messages, response_model=Pet)
    seen[mode.name] = [type(pet.kind).__name__, said.model]
client = instructor.from_openai(server)
pieces = list(client.create_partial(model="auto", messages=messages, response_model=Pet))
seen["streamed"] = type(pieces[-1].kind).__name__
try:
    client.create(model="nobody", messages=messages, response_model=Pet)
except Exception as error:
    seen["unknown"] = [type(error).__name__, "model 'nobody' not found" in str(error)]
print(json.dumps(seen))
