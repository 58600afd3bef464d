"""Somebody's file as rows to learn from: read, columns chosen, cleaned, and split by a hash.

CSV, TSV, JSON lines and JSON are read; all errors name the file and the line. Rows that are chats become
columns: `messages` of OpenAI's files, and `conversations` of ShareGPT.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.extensions.training.data import prompt_key

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
    answer_at = 0
    while answer_at < len(talk) and talk[answer_at][0] == "user":
        answer_at += 1
    answer = talk[answer_at][1] if answer_at < len(talk) and talk[answer_at][0] == "assistant" else ""
    later = sum(role == "user" for role, _ in talk[answer_at:])
    own = {key: value for key, value in row.items() if key != name}
    prompt = "\n\n".join(text for _, text in talk[:answer_at])
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
    speaker = turn.get("role", turn.get("from"))
    role = ROLES.get(speaker.lower(), "other") if isinstance(speaker, str) else "other"
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


DELIMITERS = (",", ";", "\t", "|")
SNIFFED = 50  # lines that must agree on a delimiter
LONGEST_FIELD = 1 << 20  # characters; beyond it a quote was left open
# Pairs that data sets on the Hugging Face hub commonly use.
USUAL_PAIRS = (
    (PROMPT, RESPONSE),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("input", "output"),
    ("source", "target"),
    ("text", "label"),
    ("user", "assistant"),
    ("text", "summary"),
    ("document", "summary"),
)
# An instruction, what it is about (may be empty), and the answer: Alpaca's columns, and Dolly's.
USUAL_TRIPLES = (("instruction", "input", "output"), ("instruction", "context", "response"))
CLOSED_LIST = 50  # distinct answers, at most, of a choice between labels
LABEL_WORDS = 8
NAME_WORDS, NAME_CHARACTERS = 5, 50  # of a column's name, at most
SHOWN = 5  # examples in a message
FEWEST_ROWS = 50  # fewer leave a test split that proves nothing
SPLIT_SHARE = 0.15  # of the rows, for validation and for test each
SPLIT_ROWS = 300  # at most, in each of them: more cost time and say little more


def read_pairs(
    path: Path, wanted: Columns, say: Callable[[str], None]
) -> tuple[Sequence[PromptPair], Columns, int]:
    """The usable rows of a file, the columns they come from, and how many rows were found; says all that.

    Raises ConfigError that names the file and the line, or the columns there are.
    """
    table = read_table(path, (wanted.prompt, wanted.response))
    columns = choose_columns(table.columns, wanted.prompt, wanted.response, wanted.group)
    records: Sequence[TableRow] = table.records
    if LATER in table.columns and (columns.prompt, columns.response) == (PROMPT, RESPONSE):
        columns, records = _read_chats(columns, records, say)
    spellings = one_spelling(record.values.get(columns.response, "") for record in records)
    cleaned = clean_rows(records, columns, spellings)
    found = len(table.records)
    about = f" with {columns.context!r} below it" if columns.context else ""
    say(f"{path.name}: {found} rows; {columns.prompt!r} asks{about}, {columns.response!r} answers")
    if spellings:
        shown = [f"{other!r} as {label!r}" for other, label in spellings.items()]
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        say(f"warning: answers that differ in case or spaces alone are one: {', '.join(shown[:SHOWN])}{more}")
    if left_out := cleaned.left_out():
        say(f"left out: {', '.join(left_out)}")
    return cleaned.pairs, columns, found


def _read_chats(
    columns: Columns, records: Sequence[TableRow], say: Callable[[str], None]
) -> tuple[Columns, Sequence[TableRow]]:
    """One system text of all rows becomes theirs; several stand before the requests of their rows."""
    if longer := sum(bool(record.values.get(LATER)) for record in records):
        say(
            f"warning: {longer} rows are chats of several requests; the first request and its answer are "
            "taken, the turns after them are not"
        )
    texts = {record.values.get(SYSTEM, "").strip() for record in records}
    if len(texts) == 1:
        return replace(columns, system=texts.pop()), records
    say("the rows have several system texts: each stands before the request of its row")
    whole = [
        TableRow(r.place, {**r.values, PROMPT: joined(r.values.get(SYSTEM, ""), r.values.get(PROMPT, ""))})
        for r in records
    ]
    return columns, whole


def joined(*texts: str) -> str:
    """The texts that are not empty, with a blank line between them."""
    return "\n\n".join(filter(None, (text.strip() for text in texts)))


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: a text for each of its columns, and where it stands."""

    place: str  # FILE:LINE
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataTable:
    """A whole file."""

    columns: tuple[str, ...]
    records: tuple[TableRow, ...]


def read_table(path: Path, named: Sequence[str] = ()) -> DataTable:
    """Read `path` by its suffix. The first line of a CSV names its columns.

    Raises ConfigError that names the file and the line, also where the first line of a CSV looks like a row
    and has none of the columns that are `named`.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab", ".txt"):
        delimiter = "\t" if suffix in (".tsv", ".tab") else ""
        return _delimited(path, _decoded(path), delimiter, named)
    if suffix in (".jsonl", ".ndjson", ".json"):
        read = _json_list if suffix == ".json" else _json_lines
        records = tuple(TableRow(place, values) for place, values in read(path.name, _decoded(path)))
        return DataTable(_names_of(records), records)
    raise ConfigError(f"{path}: cannot tell what it is by {suffix!r}; known: .csv, .tsv, .jsonl, .json")


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path.name}:{line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        raise ConfigError(message) from error
    if "\0" in text:
        raise ConfigError(f"{path.name} holds zero bytes: it is no text, or UTF-16; save it as UTF-8")
    if not text.strip():
        raise ConfigError(f"{path.name} is empty")
    return text


def _delimited(path: Path, text: str, delimiter: str, named: Sequence[str]) -> DataTable:
    delimiter = delimiter or _sniff(text)
    lines = list(_lines(path.name, text, delimiter))
    columns = tuple(name.strip() for name in lines[0][1])
    if set(columns).isdisjoint(named) and (why := _why_a_row(columns, [fields for _, fields in lines[1:]])):
        raise ConfigError(
            f"{path.name}: the first line looks like a row, not like names of columns ({why}); write a line "
            f"such as {delimiter.join((PROMPT, RESPONSE))} above it, or name a column of it with "
            "--prompt-column"
        )
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ConfigError(f"{path.name}: the first line names {', '.join(map(repr, twice))} more than once")
    records = []
    for number, fields in lines[1:]:
        if len(fields) != len(columns):
            raise ConfigError(
                f"{path.name}:{number} has {len(fields)} fields, the first line names {len(columns)}: "
                f"a text that holds {delimiter!r}, a quote or a line break stands in double quotes"
            )
        row = dict(zip(columns, fields, strict=True))
        records.append(TableRow(f"{path.name}:{number}", _chat_of_cell(row, f"{path.name}:{number}")))
    return DataTable(_names_of(records) or columns, tuple(records))


def _chat_of_cell(row: dict[str, str], place: str) -> dict[str, str]:
    """The row with the chat that a cell of it holds as JSON, if it holds one; any other row as it is."""
    name = next((one for one in LISTS if row.get(one, "").lstrip().startswith("[")), "")
    if not name:
        return row
    try:
        turns = json.loads(row[name])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{place}: {name!r} holds no JSON ({error}); save the rows as JSON lines, as "
            "`frame.to_json('FILE.jsonl', orient='records', lines=True)` of pandas does"
        ) from error
    return _fields(row | {name: turns}, place)


def _names_of(records: Sequence[TableRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in records for name in record.values))


def _why_a_row(names: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """Why the first line of a CSV is no line of names; empty if it may be one."""
    lowered = {name.lower() for name in names}
    if any(lowered >= set(usual) for usual in (*USUAL_PAIRS, *USUAL_TRIPLES)):
        return ""
    for name in names:
        if len(name.split()) > NAME_WORDS or len(name) > NAME_CHARACTERS:
            return f"{name[:NAME_CHARACTERS]!r} is long for a name"
    for place, name in enumerate(names):
        if name and any(len(row) > place and row[place].strip() == name for row in others):
            return f"{name!r} comes again below"
    return ""


def _lines(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number of the end, and fields, of every row that is not blank."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        message = f"{name}:{reader.line_num} is not valid CSV ({error}): is a double quote left open?"
        raise ConfigError(message) from error


def _sniff(text: str) -> str:
    """The delimiter that cuts the first rows into the most fields, the same number in each."""

    def fields(delimiter: str) -> int:
        try:
            counts = {len(row) for _, row in islice(_lines("", text, delimiter), SNIFFED)}
        except ConfigError:
            return 0
        return counts.pop() if len(counts) == 1 else 0

    found = max(DELIMITERS, key=fields)
    # Where no delimiter fits every row, the header's own is taken, so that the row that is wrong gets named.
    return found if fields(found) > 1 else max(DELIMITERS, key=text.split("\n", 1)[0].count)


def _json_lines(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE:LINE and fields of every object; blank lines are skipped."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _fields(_parse(line, place), place)


def _json_list(name: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """FILE[PLACE] and fields of every object of a list."""
    value = _parse(text, name)
    if not isinstance(value, list):
        raise ConfigError(f"{name} holds no list of objects: [{{...}}, {{...}}]")
    for number, item in enumerate(value):
        place = f"{name}[{number}]"
        yield place, _fields(item, place)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error


def _fields(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is no object: {{...}}")
    return {name: _as_text(item, name, place) for name, item in unfolded(value, place).items()}


def _as_text(value: Any, name: str, place: str) -> str:
    """Texts and numbers as they are, null as nothing; lists and objects are kept as JSON."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {name!r} holds half a character (a lone surrogate)") from error
    return text


# -- which column asks, which one answers


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; `group` is empty where every row stands for itself.

    `context` is a column that stands below the prompt where a row has it, `system` the one system text that
    the rows of chats have.
    """

    prompt: str
    response: str
    group: str = ""
    context: str = ""
    system: str = ""


def choose_columns(names: Sequence[str], prompt: str = "", response: str = "", group: str = "") -> Columns:
    """Given names win; else a usual pair of names, else the two columns there are.

    Raises ConfigError with all columns when they cannot be guessed or do not exist.
    """
    for option, name in (("prompt", prompt), ("response", response), ("group", group)):
        if name and name not in names:
            raise ConfigError(f"--{option}-column {name!r} is not in the data: {_listed(names)}")
    left = [name for name in names if name not in (prompt, response, group)]
    context = ""
    if not prompt and not response:
        prompt, context, response = _triple(left)
        if not prompt:
            prompt, response = _pair(left)
    elif len(left) == 1:
        prompt, response = prompt or left[0], response or left[0]
    if not prompt or not response:
        raise ConfigError(
            "which column is the question and which the answer? say --prompt-column NAME and "
            f"--response-column NAME; {_listed(names)}"
        )
    if len({prompt, response, group}) < 3:
        raise ConfigError("prompt, response and group must be different columns")
    return Columns(prompt, response, group, context)


def _triple(names: Sequence[str]) -> tuple[str, str, str]:
    lowered = {name.lower(): name for name in names}
    for usual in USUAL_TRIPLES:
        if set(usual) <= lowered.keys():
            prompt, context, response = (lowered[name] for name in usual)
            return prompt, context, response
    return "", "", ""


def _pair(names: Sequence[str]) -> tuple[str, str]:
    lowered = {name.lower(): name for name in names}
    for prompt, response in USUAL_PAIRS:
        if prompt in lowered and response in lowered:
            return lowered[prompt], lowered[response]
    return (names[0], names[1]) if len(names) == 2 else ("", "")


def _listed(names: Sequence[str]) -> str:
    return "the columns are " + ", ".join(map(repr, names)) + " (of a CSV file, the first line names them)"


# -- rows fit to learn from


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A prompt with its answer; pairs of one `group` go to one split."""

    prompt: str
    response: str
    group: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left, and how many rows were left out for what."""

    pairs: tuple[PromptPair, ...]
    empty: int
    repeated: int
    contradicting: int  # the same prompt with another answer: the first one counts

    def left_out(self) -> list[str]:
        """In words, for a person."""
        counts = {
            "without prompt or answer": self.empty,
            "repeated": self.repeated,
            "repeated with another answer": self.contradicting,
        }
        return [f"{count} {words}" for words, count in counts.items() if count]


def is_choice(counts: Mapping[str, int], rows: int) -> bool:
    """Whether these answers of so many rows are a choice between few and short ones."""
    few = len(counts) <= min(CLOSED_LIST, rows // 4)
    return few and all(len(label.split()) <= LABEL_WORDS for label in counts)


def one_spelling(answers: Iterable[str]) -> dict[str, str]:
    """Of labels that differ in case and white space alone: each spelling with the commonest one in its place.

    Empty where the answers are no choice between labels.
    """
    spellings = Counter(answer.strip() for answer in answers if answer.strip())
    labels: dict[str, Counter[str]] = {}
    for spelling, count in spellings.items():
        labels.setdefault(prompt_key(spelling), Counter())[spelling] = count
    if not is_choice({label: sum(found.values()) for label, found in labels.items()}, spellings.total()):
        return {}
    return {
        spelling: found.most_common(1)[0][0]
        for found in labels.values()
        for spelling in found
        if spelling != found.most_common(1)[0][0]
    }


def clean_rows(
    records: Iterable[TableRow], columns: Columns, spellings: Mapping[str, str] | None = None
) -> Cleaned:
    """Rows without text and those that repeat a prompt are left out, and counted.

    White space at the ends goes; prompts are compared without case, white space folded. `spellings` of
    answers are replaced.
    """
    kept: dict[str, PromptPair] = {}
    empty = repeated = contradicting = 0
    for record in records:
        prompt, response = (
            record.values.get(name, "").strip() for name in (columns.prompt, columns.response)
        )
        if prompt and columns.context:
            prompt = joined(prompt, record.values.get(columns.context, ""))
        response = (spellings or {}).get(response, response)
        key = prompt_key(prompt)
        if not prompt or not response:
            empty += 1
        elif key not in kept:
            group = prompt_key(record.values.get(columns.group, "")) if columns.group else ""
            kept[key] = PromptPair(prompt, response, group or key)
        elif kept[key].response == response:
            repeated += 1
        else:
            contradicting += 1
    return Cleaned(tuple(kept.values()), empty, repeated, contradicting)


def require_enough(usable: int, found: int, name: str) -> None:
    """Raises ConfigError where there are too few rows to learn from and to test with."""
    if usable < FEWEST_ROWS:
        of = f" of {found}" if found != usable else ""
        raise ConfigError(
            f"{name} has {usable} usable rows{of}; {FEWEST_ROWS} are needed at least, and some hundreds are "
            "better"
        )


# -- training, validation and test rows


Split = dict[str, list[PromptPair]]  # rows of train, valid and test


def split_rows(pairs: Sequence[PromptPair]) -> Split:
    """`train`, `valid` and `test`; pairs of one group stay together, in the order they came.

    By a hash, so that the same row always lands on the same side. Growing data keeps test rows out of
    training: the shares of validation and test rows shrink from the outer ends of the hash's range, so that a
    row may move from them to the training rows, never the other way.

    Raises ConfigError where a split stays empty: too few groups.
    """
    share = min(SPLIT_SHARE, SPLIT_ROWS / max(1, len(pairs)))
    made: Split = {"train": [], "valid": [], "test": []}
    for pair in pairs:
        place = _place(pair.group)
        made["test" if place < share else "valid" if place >= 1 - share else "train"].append(pair)
    if empty := [name for name, rows in made.items() if not rows]:
        groups = len({pair.group for pair in pairs})
        raise ConfigError(
            f"the {groups} groups of rows are too few to be split: none is left for {' and '.join(empty)}; "
            "choose another --group-column, or none"
        )
    return made


def _place(group: str) -> float:
    """A number in [0, 1), the same everywhere."""
    return int.from_bytes(hashlib.sha256(f"split {group}".encode()).digest()[:6]) / (1 << 48)
