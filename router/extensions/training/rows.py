"""Somebody's file as rows to learn from: read, columns chosen, cleaned, and split by a hash.

CSV, TSV, JSON lines and JSON are read; all errors name the file and the line. Rows that are chats become
columns: `messages` of OpenAI's files, and `conversations` of ShareGPT.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.errors import ConfigError

LISTS = ("messages", "conversations")
ROLES = {"developer": "system", "human": "user", "prompter": "user"} | dict.fromkeys(
    ("gpt", "chatgpt", "bot", "model"), "assistant"
)
PROMPT, RESPONSE, SYSTEM, LATER = "prompt", "response", "system", "later turns"
# Columns that data sets commonly use: what is asked, what stands below it ("": nothing), and the answer.
USUAL = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    (PROMPT, "", RESPONSE),
    ("prompt", "", "completion"),
    ("question", "", "answer"),
    ("instruction", "", "output"),
    ("input", "", "output"),
    ("source", "", "target"),
    ("text", "", "label"),
    ("user", "", "assistant"),
    ("text", "", "summary"),
    ("document", "", "summary"),
)
DELIMITERS = ",;\t|"
LONGEST_FIELD = 1 << 20  # characters; beyond it a quote was left open
CLOSED_LIST, LABEL_WORDS = 50, 8  # distinct answers, and words of one, at most, of a choice between labels
FEWEST_ROWS = 50  # fewer leave a test split that proves nothing
SPLIT_SHARE = 0.15  # of the rows, for validation and for test each
SPLIT_ROWS = 300  # at most, in each of them: more cost time and say little more


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


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A prompt with its answer; pairs of one `group` go to one split."""

    prompt: str
    response: str
    group: str


def read_pairs(
    path: Path, wanted: Columns, say: Callable[[str], None]
) -> tuple[Sequence[PromptPair], Columns, int]:
    """The usable rows of a file, the columns they come from, and how many rows were found; says all that.

    Raises ConfigError that names the file and the line, or the columns there are.
    """
    records = read_table(path)
    names = tuple(dict.fromkeys(name for record in records for name in record))
    columns = choose_columns(names, wanted.prompt, wanted.response, wanted.group)
    if LATER in names and (columns.prompt, columns.response) == (PROMPT, RESPONSE):
        columns, records = _with_system(columns, records, say)
    pairs, left = clean_rows(records, columns)
    about = f" with {columns.context!r} below it" if columns.context else ""
    say(f"{path.name}: {len(records)} rows; {columns.prompt!r} asks{about}, {columns.response!r} answers")
    if left:
        say("left out: " + ", ".join(f"{count} {words}" for words, count in left.items()))
    return pairs, columns, len(records)


# -- files


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of `path`, read by its suffix: a text for each column. The first line of a CSV names them.

    Raises ConfigError that names the file and the line.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".tab", ".txt"):
        rows = _csv_rows(path.name, _text_of(path), "\t" if suffix in (".tsv", ".tab") else "")
    elif suffix in (".jsonl", ".ndjson"):
        rows = read_json_lines(path)
    elif suffix == ".json":
        rows = _json_list(path.name, _text_of(path))
    else:
        raise ConfigError(f"{path}: cannot tell what it is by {suffix!r}; known: .csv, .tsv, .jsonl, .json")
    records = [_as_texts(value, place) for place, value in rows]
    if not records:
        raise ConfigError(f"{path.name} holds no row")
    return records


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """FILE:LINE and value of every line that is not blank. Raises ConfigError naming file and line."""
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path.name}:{number}", _parse(line, f"{path.name}:{number}")


def _text_of(path: Path) -> str:
    """The text of a file, unpacked where its name ends in .gz."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path.name}:{line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        raise ConfigError(message) from error
    if "\0" in text:
        raise ConfigError(f"{path.name} holds zero bytes: it is no text, or UTF-16; save it as UTF-8")
    return text


def _csv_rows(name: str, text: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Line of the end, and fields by column, of every row that is not blank."""
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = delimiter or max(DELIMITERS, key=text.lstrip().split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    try:
        for fields in reader:
            place = f"{name}:{reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = [field.strip() for field in fields]
                if twice := sorted({column for column in columns if columns.count(column) > 1}):
                    listed = ", ".join(map(repr, twice))
                    raise ConfigError(f"{name}: the first line names {listed} more than once")
                continue
            if len(fields) != len(columns):
                raise ConfigError(
                    f"{place} has {len(fields)} fields, the first line names {len(columns)}: "
                    f"a text that holds {delimiter!r}, a quote or a line break stands in double quotes"
                )
            row: dict[str, Any] = dict(zip(columns, fields, strict=True))
            chat = next((one for one in LISTS if row.get(one, "").lstrip().startswith("[")), "")
            yield place, row | ({chat: _parse(row[chat], f"{place}: {chat!r}")} if chat else {})
    except csv.Error as error:
        message = f"{name}:{reader.line_num} is not valid CSV ({error}): is a double quote left open?"
        raise ConfigError(message) from error


def _json_list(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """FILE[PLACE] and every value of a list."""
    values = _parse(text, name)
    if not isinstance(values, list):
        raise ConfigError(f"{name} holds no list of objects: [{{...}}, {{...}}]")
    for number, value in enumerate(values):
        yield f"{name}[{number}]", value


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error


def _as_texts(value: Any, place: str) -> dict[str, str]:
    """Texts and numbers as they are, null as nothing; lists and objects, but chats, are kept as JSON."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is no object: {{...}}")
    row = {
        name: "" if item is None else item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        for name, item in unfolded(value, place).items()
    }
    for name, text in row.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{place}: {name!r} holds half a character (a lone surrogate)") from error
    return row


# -- chats


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
    answer_at = next((at for at, (role, _) in enumerate(talk) if role != "user"), len(talk))
    answer = talk[answer_at][1] if answer_at < len(talk) and talk[answer_at][0] == "assistant" else ""
    return (
        {key: value for key, value in row.items() if key != name}
        | {
            PROMPT: joined(*(text for _, text in talk[:answer_at])),
            RESPONSE: answer,
            SYSTEM: system or row.get(SYSTEM) or "",  # beside the chat, as some ShareGPT files have it
            LATER: str(sum(role == "user" for role, _ in talk[answer_at:]) or ""),
        }
    )


def _is_chat(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)


def _turn(turn: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Role and text. An unknown role, such as a tool's, answers nothing."""
    speaker = str(turn.get("role", turn.get("from"))).lower()
    value = turn.get("content", turn.get("value"))
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise ConfigError(f"{place} holds other parts than text, such as an image: leave such rows out")
        value = "\n".join(texts)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{place}: its content is no text")
    return ROLES.get(speaker, speaker), value or ""


def _with_system(
    columns: Columns, records: Sequence[Mapping[str, str]], say: Callable[[str], None]
) -> tuple[Columns, list[dict[str, str]]]:
    """One system text of all rows becomes theirs; several stand before the requests of their rows."""
    if longer := sum(bool(record.get(LATER)) for record in records):
        say(
            f"warning: {longer} rows are chats of several requests; the first request and its answer are "
            "taken, the turns after them are not"
        )
    texts = {record.get(SYSTEM, "").strip() for record in records}
    if len(texts) == 1:
        return replace(columns, system=texts.pop()), [dict(record) for record in records]
    say("the rows have several system texts: each stands before the request of its row")
    return columns, [
        {**record, PROMPT: joined(record.get(SYSTEM, ""), record.get(PROMPT, ""))} for record in records
    ]


def joined(*texts: str) -> str:
    """The texts that are not empty, with a blank line between them."""
    return "\n\n".join(filter(None, (text.strip() for text in texts)))


# -- which column asks, which one answers


def choose_columns(names: Sequence[str], prompt: str = "", response: str = "", group: str = "") -> Columns:
    """Given names win; else usual names, else the two columns there are.

    Raises ConfigError with all columns when they cannot be guessed or do not exist.
    """
    listed = "the columns are " + ", ".join(map(repr, names)) + " (of a CSV file, the first line names them)"
    for option, name in (("prompt", prompt), ("response", response), ("group", group)):
        if name and name not in names:
            raise ConfigError(f"--{option}-column {name!r} is not in the data: {listed}")
    left = [name for name in names if name not in (prompt, response, group)]
    context = ""
    if not prompt and not response:
        prompt, context, response = _usual(left)
    elif len(left) == 1:
        prompt, response = prompt or left[0], response or left[0]
    if not prompt or not response:
        raise ConfigError(
            "which column is the question and which the answer? say --prompt-column NAME and "
            f"--response-column NAME; {listed}"
        )
    if len({prompt, response, group}) < 3:
        raise ConfigError("prompt, response and group must be different columns")
    return Columns(prompt, response, group, context)


def _usual(names: Sequence[str]) -> tuple[str, str, str]:
    lowered = {name.lower(): name for name in names} | {"": ""}
    for usual in USUAL:
        if set(usual) <= lowered.keys():
            prompt, context, response = (lowered[name] for name in usual)
            return prompt, context, response
    return (names[0], "", names[1]) if len(names) == 2 else ("", "", "")


# -- rows fit to learn from


def prompt_key(prompt: str) -> str:
    """What two prompts share that count as the same: no case, white space folded."""
    return " ".join(prompt.casefold().split())


def clean_rows(
    records: Iterable[Mapping[str, str]], columns: Columns
) -> tuple[list[PromptPair], dict[str, int]]:
    """Rows without text and those that repeat a prompt are left out, and counted by reason.

    White space at the ends goes; prompts are compared without case, white space folded. Of rows with one
    prompt, the first one counts.
    """
    kept: dict[str, PromptPair] = {}
    left = {"without prompt or answer": 0, "repeated": 0, "repeated with another answer": 0}
    for record in records:
        prompt, response = (record.get(name, "").strip() for name in (columns.prompt, columns.response))
        if not prompt or not response:
            left["without prompt or answer"] += 1
            continue
        prompt = joined(prompt, record.get(columns.context, ""))
        key = prompt_key(prompt)
        if key in kept:
            same = kept[key].response == response
            left["repeated" if same else "repeated with another answer"] += 1
            continue
        group = prompt_key(record.get(columns.group, ""))
        kept[key] = PromptPair(prompt, response, group or key)
    return list(kept.values()), {words: count for words, count in left.items() if count}


def labels_of(pairs: Sequence[PromptPair]) -> tuple[str, ...]:
    """The answers, commonest first, if they are a choice between few and short ones; else none."""
    counts = Counter(pair.response for pair in pairs)
    few = len(counts) <= min(CLOSED_LIST, len(pairs) // 4)
    choice = few and all(len(label.split()) <= LABEL_WORDS for label in counts)
    return tuple(label for label, _ in counts.most_common()) if choice else ()


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
