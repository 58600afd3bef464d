"""llm, its library and its command: `python with_llm.py URL`; prints what it saw as JSON."""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import llm

url = sys.argv[1]
folder = Path(os.environ.setdefault("LLM_USER_PATH", tempfile.mkdtemp()))  # where it keeps keys and logs
models = [{"model_id": f"r-{name}", "model_name": name, "api_base": url} for name in ("auto", "nobody")]
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML

text = "a medical question"
seen = {"version": f"llm {version('llm')}, openai {version('openai')}"}


def asked(name: str, **options: bool) -> llm.Response:
    """An answer, read to its end."""
    answer = llm.get_model(name).prompt(text, system="Be brief.", key="none", max_tokens=40, **options)
    answer.text()
    return answer


whole = asked("r-auto", stream=False)
seen["whole"], said = whole.text(), whole.response_json
seen["model"], seen["id"] = said["model"], said["id"]
seen["adapter"] = said.get("routing", {}).get("adapter")
seen["tokens"] = whole.usage().input + whole.usage().output
streamed = asked("r-auto")
seen["streamed"], seen["streamed_model"] = streamed.text(), streamed.response_json.get("model")
command = [sys.executable, "-m", "llm", "-m", "r-auto", "--key", "none", "-s", "Be brief.", text]
seen["command"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
try:
    asked("r-nobody")
except Exception as error:  # it has classes of its own for some, and lets others through
    seen["unknown"] = [type(error).__name__, str(error)]
print(json.dumps(seen))
