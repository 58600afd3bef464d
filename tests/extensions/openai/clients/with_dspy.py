"""DSPy: `python with_dspy.py URL`; prints what it saw as JSON."""

import json
import os
import sys
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import fetches a list of prices

import dspy
from dspy.utils.exceptions import AdapterParseError

text = "a medical question"
server = {"api_base": sys.argv[1], "api_key": "none", "cache": False}
seen = {"version": f"dspy {version('dspy')}, litellm {version('litellm')}"}
model = dspy.LM("openai/auto", **server)
seen["whole"], seen["model"] = model(text)[0], model.history[-1]["response_model"]
try:
    with dspy.context(lm=model):
        dspy.Predict("question -> answer")(question=text)
except AdapterParseError as error:  # by `openai/` it asks for any JSON: a base may write another
    seen["unshaped"] = type(error).__name__
with dspy.context(lm=dspy.LM("lm_studio/auto", **server)):  # to which it gives its schema
    shaped = dspy.Predict("question -> answer, sure: bool")(question=text)
seen["shaped"] = [type(shaped.answer).__name__, type(shaped.sure).__name__]
print(json.dumps(seen))
