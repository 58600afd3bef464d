"""Prompts to token ids, so that what templates write stays apart from what people write.

Serving and training both render through here, so they cannot differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from threading import Lock
from typing import Any

from router.engine.base import Prompt, common_length
from router.engine.lengths import (
    PIECE,
    Places,
    check_uncut,
    cut_in_pieces,
    places_to_cut,
)
from router.engine.tool_prompts import (
    MARKED,
    Marks,
    calls_as_text,
    function_value,
    message_of,
    named,
    with_functions,
)
from router.errors import (
    AdapterRejected,
    ConfigError,
    FieldViolation,
    InvalidRequest,
    PromptTooLong,
    install_extra,
)
from router.types import PLACEHOLDER, PromptTemplate, Tool, ToolCall, Tools, Turn

Encode = Callable[[str], list[int]]
Check = Callable[[], None]  # raises where nothing more is to be encoded

JINJA = (3, 1, 6)  # earlier ones let a template out of its sandbox (CVE-2025-27516)
TEMPLATES = 256  # whose beginnings are kept
PROBES = ("x", "7 days", "\n- a", "你好", '"Why?"')
# A conversation with a call of a function, by which the forms of a template are found.
PROBED = Tool(
    "router_probe", parameters='{"type": "object", "properties": {"probe_key": {"type": "string"}}}'
)
PROBED_CALL = ToolCall("1", "router_probe", '{"probe_key": "probe_value"}')
NO_TOOLS = Tools()
PROBED_TEXTS = ("router_probe", "probe_value", "probe_result")
PROBED_TURNS = (
    Turn("user", "-"),
    Turn("assistant", "", (PROBED_CALL,)),
    Turn("tool", "probe_result", call_id="1", function="router_probe"),
)


class PromptEncoder:
    """Encodes prompts for one base. Thread-safe; time grows linearly with the text.

    Turns are rendered by the base's chat template. A base without one gets the texts with an empty
    line between them (`system`, then the turns). Text of turns, of functions, of adapters' templates and of
    raw prompts never produces a special token, whatever it spells.

    Functions are shown where the chat template has a form for them. Where it has none, they are shown as text
    if one has to be called, else not at all; calls in earlier turns become text.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: any transformers tokenizer; it is not changed."""
        self._chat = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._text = TextEncoder(tokenizer, self._chat.source if self._chat else "")
        if self._chat is not None:
            self._chat.controls = lambda text: bool(self._text.control_ids(text))
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []
        self._eos: int | None = tokenizer.eos_token_id
        self._answer_end = self._find_answer_end()
        self.beginning = lru_cache(TEMPLATES)(self._beginning)

    @property
    def has_chat_template(self) -> bool:
        """Whether the base has one."""
        return self._chat is not None

    @property
    def has_tool_form(self) -> bool:
        """Whether its chat template shows functions to the model."""
        return self._chat is not None and self._chat.shows_tools

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the chat template's and the tokenizer's."""
        return frozenset(i for i in (self._answer_end, self._eos) if i is not None)

    def encode(self, prompt: Prompt, most: int | None = None, check: Check | None = None) -> list[int]:
        """Token ids of a prompt, ready to be continued. `check` is called before each piece that is encoded.

        Raises InvalidRequest if the base's template refuses the order of roles or a piece of the text is too
        long to be encoded at once, AdapterRejected unless the adapter's template has one place for the
        prompt, PromptTooLong where there are more than `most` tokens; what comes behind is not read then.
        Raises what `check` raises.
        """
        if prompt.raw is not None:
            begin = [] if prompt.follows else self._bos
            pieces = [PromptPiece(prompt.raw, from_template=False)]
            return begin + self._text.encode(pieces, prompt.follows, most, check)
        turns = apply_template(prompt.turns, prompt.template)
        if self._chat is not None and turns:
            return self._text.encode(self._chat.render(turns, tools=prompt.tools), most=most, check=check)
        if prompt.tools.choice == "required" and prompt.tools.callable:
            turns = with_functions(turns, prompt.tools)
        text = "\n\n".join(turn.text for turn in calls_as_text(turns))
        return self._bos + self._text.encode([PromptPiece(text, from_template=False)], most=most, check=check)

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` are those that every prompt under its template begins with."""
        if prompt.raw is not None:
            return 0
        return common_length(self.beginning(prompt.template), tokens)

    def _beginning(self, template: PromptTemplate) -> tuple[int, ...]:
        """What prompts under a template begin with, whatever is asked: of several that differ at once."""
        prompts = [Prompt((Turn("user", text),), template=template) for text in PROBES]
        try:
            first, *others = [self.encode(prompt) for prompt in prompts]
        except InvalidRequest:
            return ()  # the base's template refuses a question alone
        return tuple(first[: common_length(first, *others)])

    def encode_example(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        """A training example: ids of prompt, response and end token, and how many are the prompt's."""
        ids = self.encode(prompt)
        answer = self._text.encode([PromptPiece(response, from_template=False)], follows=bool(ids))
        chat = prompt.raw is None and self._chat is not None
        end = self._answer_end if chat else self._eos
        return ids + answer + ([end] if end is not None else []), len(ids)

    def encode_template_text(self, text: str) -> list[int]:
        """Token ids of what a template writes behind other tokens; the text may name special tokens."""
        return self._text.encode([PromptPiece(text, from_template=True)], follows=True)

    def _find_answer_end(self) -> int | None:
        """The first control token the chat template writes after an answer, else the tokenizer's end."""
        if self._chat is None:
            return self._eos
        pieces = self._chat.render([Turn("user", "-"), Turn("assistant", "-")], answer_follows=False)
        return next(iter(self._text.control_ids(pieces[-1].text)), self._eos)


def apply_template(turns: Sequence[Turn], template: PromptTemplate) -> list[Turn]:
    """The conversation with an adapter's `[prompt]` applied.

    The last user turn goes into the template, by literal replacement; the adapter's system text
    comes first unless the conversation brings its own.
    """
    if template.problem:
        raise AdapterRejected(f"the adapter's prompt template {template.problem}")
    result = list(turns)
    last = max((i for i, turn in enumerate(result) if turn.role == "user"), default=None)
    if last is not None:
        result[last] = Turn("user", template.template.replace(PLACEHOLDER, result[last].text))
    if template.system and not any(turn.role == "system" for turn in result):
        result.insert(0, Turn("system", template.system))
    return result


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A stretch of a rendered conversation; only the template's own may name special tokens."""

    text: str
    from_template: bool


class ChatTemplate:
    """The chat template of a tokenizer. Raises ConfigError without a jinja2 that may render it."""

    def __init__(self, tokenizer: Any) -> None:
        _check_renderer()
        self._tokenizer = tokenizer
        self.source: str = tokenizer.get_chat_template()
        self.controls: Callable[[str], bool] = lambda text: True  # whether a text names a control token
        self.shows_tools = self._shows(PROBED_TURNS[:1], (PROBED,), False, PROBED.name)
        # Whether arguments of calls are JSON as text to it, or an object; None: it has no form for calls.
        self._as_text = next(
            (way for way in (False, True) if self._shows(PROBED_TURNS, (), way, *PROBED_TEXTS)), None
        )

    def render(
        self, turns: Sequence[Turn], answer_follows: bool = True, tools: Tools = NO_TOOLS
    ) -> list[PromptPiece]:
        """The conversation, up to where an answer begins if one follows.

        A template without a system role gets that text before the first user turn's. Raises
        InvalidRequest if the template refuses the order of roles.
        """
        shown = tools.callable if self.shows_tools else ()
        if tools.choice == "required" and tools.callable and not shown:
            turns = with_functions(turns, tools)
        forms = [named(turns)] if self._as_text is not None else []
        if not forms or any(turn.calls or turn.role == "tool" for turn in turns):
            forms.append(calls_as_text(turns))
        for form in forms:
            pieces = self._rendered(form, answer_follows, shown)
            if pieces is None and form[0].role == "system":
                pieces = self._rendered(_without_system(form), answer_follows, shown)
            if pieces is not None:
                return pieces
        text = "this base model's chat template refuses this order of roles"
        raise InvalidRequest([FieldViolation("input.chat.messages", text)])

    def _rendered(
        self, turns: Sequence[Turn], answer_follows: bool, shown: Sequence[Tool]
    ) -> list[PromptPiece] | None:
        """None if the template raises, or leaves out a turn or changes their order."""
        marks = self._marks(turns)
        messages = self._messages(turns, marks, bool(self._as_text))
        rendered = self._raw(messages, shown, answer_follows, marks)
        if rendered is None:
            return None
        order = [int(found[2]) for found in MARKED.finditer(rendered)]
        if [i for i in order if i < len(turns)] != [i for i, turn in enumerate(turns) if turn.text]:
            return None
        return list(_split_at_marks(rendered, marks))

    def _raw(
        self, messages: Sequence[Any], shown: Sequence[Tool], answer_follows: bool, marks: Marks
    ) -> str | None:
        from jinja2 import TemplateError

        tools = [{"type": "function", "function": marks.value(function_value(tool))} for tool in shown]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self.source,
                add_generation_prompt=answer_follows,
                tokenize=False,
            )
        except (TemplateError, TypeError):  # it raises, or joins what are no texts
            return None
        return rendered

    def _shows(self, turns: Sequence[Turn], shown: Sequence[Tool], as_text: bool, *texts: str) -> bool:
        """Whether the template shows texts of a conversation or of functions."""
        marks = self._marks(turns)
        rendered = self._raw(self._messages(turns, marks, as_text), shown, True, marks)
        found = MARKED.sub(marks.restored, rendered or "")
        return all(text in found for text in texts)

    def _messages(self, turns: Sequence[Turn], marks: Marks, as_text: bool) -> list[dict[str, Any]]:
        names: dict[str, str] = {}
        return [message_of(turn, i, marks, names, as_text) for i, turn in enumerate(turns)]

    def _marks(self, turns: Sequence[Turn]) -> Marks:
        return Marks(self.controls, [turn.text for turn in turns])


def _check_renderer() -> None:
    """Raises ConfigError without jinja2, and where it has a known hole in its sandbox."""
    if find_spec("jinja2") is not None:
        found = tuple(int(part) for part in re.findall(r"\d+", version("jinja2"))[:3])
        if found >= JINJA:
            return
    raise ConfigError(
        f"the chat template of this base needs the package jinja2, {'.'.join(map(str, JINJA))} or newer: "
        + install_extra("standard")
    )


def _split_at_marks(rendered: str, marks: Marks) -> Iterator[PromptPiece]:
    place = 0
    for found in MARKED.finditer(rendered):
        yield PromptPiece(rendered[place : found.start()], from_template=True)
        yield PromptPiece(marks.restored(found), from_template=False)
        place = found.end()
    yield PromptPiece(rendered[place:], from_template=True)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    system, *rest = turns
    first = next((i for i, turn in enumerate(rest) if turn.role == "user"), None)
    if first is None:
        return [Turn("user", system.text), *rest]
    rest[first] = Turn("user", f"{system.text}\n\n{rest[first].text}")
    return rest


class TextEncoder:
    """Encodes pieces as if they were one text, except that people's text names no control token.

    Control tokens are the special ones and those others that the chat template writes. The ones in
    trusted pieces are cut out first; the runs of text between them are encoded whole by a copy of
    the tokenizer that knows no special tokens. That copy is never changed, so threads may share it.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        added = dict(tokenizer.added_tokens_decoder)
        names = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        for token_id, token in added.items():
            if token.special or (token.content.strip() and token.content in template):
                names[token.content] = token_id
        self.control: dict[str, int] = names
        self._takes_left = {t.content for t in added.values() if t.lstrip}
        self._takes_right = {t.content for t in added.values() if t.rstrip}
        longest_first = sorted(names, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._plain = _plain_encoders(tokenizer, names)

    def encode(
        self,
        pieces: Sequence[PromptPiece],
        follows: bool = False,
        most: int | None = None,
        check: Check | None = None,
    ) -> list[int]:
        """Ids of the pieces one after the other; `follows` says that other tokens come before them.

        Raises PromptTooLong where there are more than `most`, and what `check` raises, which is called before
        each run of text.
        """
        ids: list[int] = []
        for part in self._runs(pieces):
            if check is not None:
                check()
            if most is not None and len(ids) > most:
                raise PromptTooLong(most, len(ids), at_least=True)
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids.extend((self._plain.later if ids or follows else self._plain.first)(part))
        if most is not None and len(ids) > most:
            raise PromptTooLong(most, len(ids))
        return ids

    def _runs(self, pieces: Sequence[PromptPiece]) -> Iterator[str | int]:
        for part in self._parts(pieces):
            if isinstance(part, int) or len(part) <= PIECE:
                yield part
                continue
            for piece in [part] if self._plain.places is None else cut_in_pieces(part, self._plain.places):
                check_uncut(piece)
                yield piece

    def control_ids(self, text: str) -> list[int]:
        """The control tokens that a trusted text names, in order."""
        return [self.control[name] for name in self._find.findall(text)]

    def _parts(self, pieces: Sequence[PromptPiece]) -> Iterator[str | int]:
        """Control tokens of trusted pieces, and the runs of text between them."""
        run, strip = "", False
        for piece in pieces:
            place = 0
            for found in self._find.finditer(piece.text) if piece.from_template else ():
                run += piece.text[place : found.start()]
                run = run.lstrip() if strip else run
                yield run.rstrip() if found[0] in self._takes_left else run
                yield self.control[found[0]]
                run, strip, place = "", found[0] in self._takes_right, found.end()
            run += piece.text[place:]
        yield run.lstrip() if strip else run


@dataclass(frozen=True, slots=True)
class _PlainEncoders:
    """Encoders of text at the very beginning and of text after other tokens, and what is known of lengths."""

    first: Encode
    later: Encode
    places: Places | None = None  # where text may be cut


def _plain_encoders(tokenizer: Any, control: dict[str, int]) -> _PlainEncoders:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        encode = _slow_encoder(tokenizer, frozenset(control.values()) - {tokenizer.unk_token_id})
        return _PlainEncoders(encode, encode)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    first = later = _fast_encoder(spec, control, tokenizer.unk_token)
    without = _without_prefix(spec)
    if without != spec:
        later = _fast_encoder(without, control, tokenizer.unk_token)
    return _PlainEncoders(first, later, places_to_cut(spec, first, later))


def _fast_encoder(spec: Any, control: dict[str, int], unknown: str | None) -> Encode:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps(spec))
    plain.encode_special_tokens = True  # that is: encode their names as text
    forbidden = frozenset(i for name, i in control.items() if name != unknown)
    unknown_id = control.get(unknown or "")

    def bad(token_id: int, text: str) -> bool:
        """Whether `text` may not give this token: unknown text may be unknown, its name may not."""
        return token_id in forbidden or (token_id == unknown_id and str(unknown) in text)

    def encode(text: str) -> list[int]:
        # A batch of one, since only batches let other threads run meanwhile.
        ids: list[int] = plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        fine = forbidden.isdisjoint(ids) and not (unknown_id in ids and str(unknown) in text)
        return ids if fine else spelt_out(text)

    def spelt_out(text: str) -> list[int]:
        """A vocabulary may hold a name as an ordinary word (Unigram does): that goes letter by letter."""
        safe: list[int] = []
        encoding = plain.encode_batch([text], add_special_tokens=False)[0]
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            span = text[start:end]
            if not bad(token_id, span):
                safe.append(token_id)
                continue
            for letter in plain.encode_batch(list(span), add_special_tokens=False):
                safe += [i for i in letter.ids if i not in forbidden]
        return safe

    return encode


def _slow_encoder(tokenizer: Any, forbidden: frozenset[int]) -> Encode:
    lock = Lock()  # tokenizers written in Python keep state while they work

    def encode(text: str) -> list[int]:
        with lock:
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [i for i in ids if i not in forbidden]

    return encode


def _without_prefix(spec: Any) -> Any:
    """The same tokenizer for text that is not at the beginning: SentencePiece's `first` scheme puts
    its word mark only there."""
    if isinstance(spec, dict):
        copy = {key: _without_prefix(value) for key, value in spec.items() if key != "vocab"}
        if "vocab" in spec:
            copy["vocab"] = spec["vocab"]
        if copy.get("prepend_scheme") == "first":
            copy["prepend_scheme"] = "never"
        return copy
    return [_without_prefix(value) for value in spec] if isinstance(spec, list) else spec
