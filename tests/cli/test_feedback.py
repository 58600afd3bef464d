"""`lora-router feedback`, and `list`, `export` and `delete`, against a server with a fake engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from tests.server.helpers import Start


@pytest.fixture
async def command(start_server: Start, fakes: Any, cli: Any, monkeypatch: Any, tmp_path: Path) -> Any:
    """Run a command in a thread while the server goes on in this loop."""
    recorder = FeedbackRecorder(FeedbackStore.in_folder(tmp_path / "state"), "texts", 90)
    server = await start_server(**vars(fakes), feedback=recorder)
    monkeypatch.setenv("LORA_ROUTER_SERVER", server.address)

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(cli, *arguments)

    return run


async def answered(command: Any, text: str) -> str:
    done = await command("ask", "--json", "--adapter", "medical", text)
    return str(json.loads(done.out)["response_id"])


async def test_feedback_from_an_answer_to_training_rows(command: Any, tmp_path: Path) -> None:
    first, second, third = [await answered(command, f"question {number}") for number in range(3)]
    (tmp_path / "right.txt").write_text("Chapter XII\n")
    assert (await command("feedback", first, "--good")).out == "kept, with texts\n"
    corrected = await command("feedback", second, "--corrected", str(tmp_path / "right.txt"), "--json")
    assert json.loads(corrected.out) == {"response_id": second, "kept": "texts", "replaced": False}
    assert (await command("feedback", third, "--good")).code == 0
    again = await command("feedback", third, "--bad", "--comment", "wrong")
    assert again.out == "kept, with texts; it replaces earlier feedback\n"

    better = ("--should-have-been", "legal", "--comment", "a tort")
    assert (await command("feedback", await answered(command, "a tort"), *better)).out == "kept, with texts\n"

    listed = (await command("feedback", "list", "medical")).out
    assert ("Chapter XII" in listed, listed.splitlines()[-1]) == (True, "4 of 4")
    assert listed.splitlines()[4].split()[-1] == "legal"
    done = await command("feedback", "export", "medical")
    assert done.err == "2 rows\n2 left out: bad, without a corrected text\n"
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["prompt"], row["verdict"]) for row in rows] == [
        ("question 0", "good"),
        ("question 1", "corrected"),
    ]
    assert (rows[1]["response"], rows[1]["response_id"]) == ("Chapter XII", second)

    assert (await command("feedback", "delete", "--unit", "nobody-here")).out == "0 deleted\n"
    assert (await command("feedback", "list", "legal")).out == "no feedback on legal\n"
    assert (await command("feedback", "export", "medical", "--since", "2999-01-01")).out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("x",),
        ("x", "--good", "--bad"),
        ("x", "--good", "--should-have-been", "legal"),
        ("x", "--corrected", "empty.txt"),
        ("delete",),
        ("export", "medical", "--since", "yesterday"),
    ],
)
def test_what_is_asked_wrongly(cli: Any, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    done = cli("feedback", *arguments)
    assert (done.code, done.out) == (2, "")
