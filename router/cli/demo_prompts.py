"""What the demonstration asks. None of it is in the adapters' training data (a test compares)."""

from __future__ import annotations

# Adapter name -> requests that should find it on their own.
PROMPTS: dict[str, tuple[str, ...]] = {
    "medical": (
        'Which ICD-10-CM chapter does "Beard ringworm" belong to?',
        'Which ICD-10-CM chapter does this diagnosis belong to: "Stone in the left kidney"?',
    ),
    "translation": (
        "Translate to French: high-level FTP client library for Python",
        "Translate to French: small and fast editor for configuration files",
    ),
    "legal": (
        "Which licence does this notice grant (SPDX identifier), and of what kind is it?\n\n"
        "You may use and share this program under version 3 of the GNU Affero General Public License only.",
    ),
    "financial": (
        'Where is the line item "Interest Owed On Customer Savings" reported? '
        "Give the financial statement and its section.",
    ),
    "qa": (
        "Answer the question from the passage.\n\n"
        "Passage: The lighthouse on the northern cape was lit in 1871 and automated in 1988; its last "
        "keeper, Ruth Olsen, stayed on as a guide.\n\n"
        "Question: When was the lighthouse automated?",
    ),
    "summarization": (
        "Summarize this software description in one short line.\n\n"
        "This tool watches a folder of photographs, finds pictures that show the same scene, and proposes "
        "which ones to delete. It runs in a terminal and never deletes a file without asking.",
    ),
    "code": (
        "Write a SQLite query with ? for values.\nTables: ships(ship_id, name, harbour, built_year)\n"
        "Question: How many ships were built after a given year?",
    ),
}
BASE = ("Write two lines of verse about rain.", "Suggest a name for a grey cat.")
PINNED = "What are you a specialist in?"  # for an adapter that the table does not know


def requests_for(names: list[str]) -> list[tuple[str, str, bool]]:
    """(expected adapter or empty for the base, prompt, whether it must be pinned) for these adapters."""
    found = [(name, prompt, False) for name in names for prompt in PROMPTS.get(name, ())]
    found += [(name, PINNED, True) for name in names if name not in PROMPTS]
    return found + [("", prompt, False) for prompt in BASE]
