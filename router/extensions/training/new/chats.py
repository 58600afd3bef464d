"""Rows that are chats as columns: `messages` of OpenAI's files, and `conversations` of ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.errors import ConfigError

LISTS = ("messages", "conversations")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
PROMPT, RESPONSE, SYSTEM, LATER = "prompt", "response", "system", "later turns"


def unfolded(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The row with its chat as the columns PROMPT, RESPONSE, SYSTEM and LATER; any other row as it is.

    PROMPT and RESPONSE are the first request and its answer, which need no turn before them; LATER is how
    many requests follow. Raises ConfigError, naming `place`, for a turn that is not understood.
    """
    name = next((one for one in LISTS if _is_chat(row.get(one))), "")
    if not name:
        return dict(row)
    turns = [_turn(turn, f"{place}: {name}[{number}]") for number, turn in enumerate(row[name])]
    system = "\n\n".join(text for role, text in turns if role == "system")
    talk = [turn for turn in turns if turn[0] != "system"]
    while talk and talk[0][0] != "user":  # a greeting that answers nothing
        del talk[0]
    asked = 0
    while asked < len(talk) and talk[asked][0] == "user":
        asked += 1
    answer = talk[asked][1] if asked < len(talk) and talk[asked][0] == "assistant" else ""
    later = sum(role == "user" for role, _ in talk[asked:])
    own = {key: value for key, value in row.items() if key != name}
    prompt = "\n\n".join(text for _, text in talk[:asked])
    own_system = own.get(SYSTEM)
    if not system and isinstance(own_system, str):  # beside the chat, as some ShareGPT files have it
        system = own_system
    return own | {PROMPT: prompt, RESPONSE: answer, SYSTEM: system, LATER: str(later or "")}


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def _turn(turn: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Role and text. An unknown role, such as a tool's, answers nothing."""
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(said.lower(), "other") if isinstance(said, str) else "other"
    value = turn.get("content", turn.get("value"))
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise ConfigError(f"{place} holds other parts than text, such as an image: leave such rows out")
        value = "\n".join(texts)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{place}: its content is no text")
    return role, value or ""
