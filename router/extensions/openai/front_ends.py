"""Requests that a front end makes by itself, beside what its user asks: titles, tags and proposed questions.

Open WebUI sends them for each chat, to the model of the chat. They carry no mark but their text: a task that
begins with TASK, and the conversation in a line of its own and those that follow (its `config.py`, templates
that end in `_GENERATION_PROMPT_TEMPLATE`).
"""

from __future__ import annotations

TASK, HISTORY = "### Task:\n", "\n<chat_history>\n"


def is_side_task(text: str) -> bool:
    """Whether a front end wrote this text about a conversation, and not its user.

    >>> is_side_task("### Task:\\nGenerate a title.\\n<chat_history>\\nUSER: Hello\\n</chat_history>")
    True
    >>> is_side_task("What is a <chat_history>?")
    False
    """
    return text.startswith(TASK) and HISTORY in text
