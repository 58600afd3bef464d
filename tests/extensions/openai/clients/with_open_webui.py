"""Open WebUI with its defaults: `python with_open_webui.py URL`; prints what its user saw as JSON.

A chat goes as its page sends it: Open WebUI offers its own tools to the model, streams the answer, and then
asks for a title, tags and further questions by itself.
"""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from importlib.metadata import version
from pathlib import Path

import httpx

TEXT = "a medical question"
TASKS = ("title_generation", "tags_generation", "follow_up_generation")
NEW = "New Chat"  # its title before it has one
SECONDS = 300  # most that it may take to start, and to answer


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (
        Path(sys.executable).with_name("open-webui"),
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    )
    connection = {"OPENAI_API_BASE_URL": sys.argv[1], "OPENAI_API_KEY": "none", "WEBUI_AUTH": "False"}
    alone = {"DATA_DIR": str(Path.cwd() / "data"), "OFFLINE_MODE": "True", "HF_HUB_OFFLINE": "1"}
    with open("open-webui.log", "wb") as log:
        server = subprocess.Popen(command, env=os.environ | connection | alone, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait(client, server)
            print(json.dumps(seen_by(client)))
    finally:
        server.terminate()
        server.wait()


def wait(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(Path("open-webui.log").read_text())


def seen_by(client: httpx.Client) -> dict[str, object]:
    signed_in = client.post("/api/v1/auths/signin", json={"email": "", "password": ""}).raise_for_status()
    client.headers["Authorization"] = f"Bearer {signed_in.json()['token']}"
    models = [model["id"] for model in client.get("/api/models").raise_for_status().json()["data"]]
    question, answer = str(uuid.uuid4()), str(uuid.uuid4())
    asked = {
        "stream": True,
        "model": "auto",
        "params": {},
        "features": {
            "voice": False,
            "image_generation": False,
            "code_interpreter": False,
            "web_search": False,
        },
        "variables": {},
        "session_id": str(uuid.uuid4()),
        "id": answer,
        "parent_id": None,
        "user_message": {
            "id": question,
            "parentId": None,
            "childrenIds": [answer],
            "role": "user",
            "content": TEXT,
            "timestamp": int(time.time()),
            "models": ["auto"],
        },
        "background_tasks": dict.fromkeys(TASKS, True),
    }
    chat = client.post("/api/chat/completions", json=asked).raise_for_status().json()["chat_id"]
    end = time.monotonic() + SECONDS
    running, kept = True, {"title": NEW}
    while time.monotonic() < end and (running or kept["title"] == NEW):
        time.sleep(0.2)
        running = client.get(f"/api/tasks/chat/{chat}").raise_for_status().json()["task_ids"]
        kept = client.get(f"/api/v1/chats/{chat}").raise_for_status().json()["chat"]
    message = kept["history"]["messages"][answer]
    return {
        "version": f"open-webui {version('open-webui')}",
        "models": models[:2],
        "whole": message["content"],
        "error": message.get("error"),
        "title": kept["title"],
    }


main()
