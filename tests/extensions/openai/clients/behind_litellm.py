"""LiteLLM's proxy in front of a server: `python behind_litellm.py URL`; prints what a client saw as JSON."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import httpx

KEY = "sk-0123456789abcdef0123456789abcdef"
CONFIG = """
model_list:
  - {{model_name: router, litellm_params: {{model: openai/auto, api_base: "{url}", api_key: none}}}}
  - {{model_name: base, litellm_params: {{model: openai/base, api_base: "{url}", api_key: none}}}}
  - {{model_name: gone, litellm_params: {{model: openai/x, api_base: "http://127.0.0.1:9", api_key: none}}}}
litellm_settings: {{fallbacks: [{{gone: [router]}}], num_retries: 0}}
"""
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a medical question"}]
ASKED = {"messages": MESSAGES, "max_tokens": 40}


def main() -> None:
    Path("config.yaml").write_text(CONFIG.format(url=sys.argv[1]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("litellm")
    keys = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    options = ("--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port))
    with open("proxy.log", "wb") as log:
        proxy = subprocess.Popen([command, *options], env=os.environ | keys, stdout=log, stderr=log)
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            wait(client, proxy)
            print(json.dumps(seen_by(client)))
    finally:
        proxy.terminate()
        proxy.wait()


def wait(client: httpx.Client, proxy: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            if client.get("/health/liveliness").status_code == 200:
                return
        except httpx.TransportError:
            if proxy.poll() is not None:
                break
        time.sleep(0.5)
    raise SystemExit(Path("proxy.log").read_text())


def seen_by(client: httpx.Client) -> dict[str, object]:
    whole = answer(client, "router")
    body = whole.json()
    fallen = answer(client, "gone")
    with client.stream(
        "POST", "/v1/chat/completions", json=ASKED | {"model": "router", "stream": True}
    ) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]
    streamed = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)
    return {
        "version": f"litellm {version('litellm')}",
        "whole": body["choices"][0]["message"]["content"],
        "streamed": streamed,
        "id": body["id"],
        "tokens": body["usage"]["total_tokens"],
        "adapter": whole.headers["llm_provider-x-router-adapter"],
        "routing": body["routing"]["adapter"],
        "base": answer(client, "base").json()["choices"][0]["message"]["content"],
        "fallback": [
            fallen.headers["llm_provider-x-router-adapter"],
            fallen.headers["x-litellm-attempted-fallbacks"],
        ],
    }


def answer(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/v1/chat/completions", json=ASKED | {"model": model}).raise_for_status()


main()
