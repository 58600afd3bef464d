"""Whose answer is it? What an answer must be, from the files, the tenant and the prompt that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from router.engine.base import Job
from tests.soak.journal import Content, Journal

BASE = "base"
TEMPLATE = "{name} {version} g{generation}:"  # stands before the prompt in the manifests of the fake engine


@dataclass(frozen=True, slots=True)
class SentRequest:
    """One request as its caller made it. `adapter`: NAME or NAME@VERSION, '' if routing is to choose."""

    client: str
    prompt: str
    adapter: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back; empty `name` for the base. `whole`: the text is not only a beginning."""

    response_id: str
    name: str
    version: str
    digest: str
    text: str
    start: float
    end: float
    whole: bool = True


class Truth(Protocol):
    """What the text of an answer must be."""

    def text(self, tenant: str, response_id: str, content: Content | None, prompt: str) -> str:
        """The whole of it; `content` None: of the base."""
        ...


@dataclass(frozen=True, slots=True)
class NamedAnswers:
    """The fake engine's answers name tenant, response, files and prompt themselves (see `telling`)."""

    joint: bool = False

    def text(self, tenant: str, response_id: str, content: Content | None, prompt: str) -> str:
        """See Truth."""
        tag, digest, said = BASE, BASE, prompt
        if content is not None:
            tag, digest = content.digest[:8], content.digest
            start = TEMPLATE.format(name=content.name, version=content.version, generation=content.generation)
            said = f"{start} {prompt}"
        rest = f"{tenant} {response_id} {digest} {said}"
        return f"[{tag}] {rest.replace(' ', '_') if self.joint else rest}"


def telling(job: Job, joint: bool = False) -> list[int]:
    """Tokens of a job for the fake engine, which repeats them: what the engine was told, then the prompt.

    `joint`: in one word, so that the answer takes two steps.
    """
    tokens = [*f"{job.tenant} {job.request_id} {job.adapter or BASE} ".encode(), *job.tokens]
    return list(bytes(tokens).replace(b" ", b"_")) if joint else tokens


@dataclass
class Alone:
    """Answers of a real base, taken one at a time before anything else ran; by weights and prompt."""

    texts: dict[tuple[str, str], str] = field(default_factory=dict)

    def text(self, tenant: str, response_id: str, content: Content | None, prompt: str) -> str:
        """See Truth."""
        return self.texts[content.weights if content is not None else BASE, prompt]


def problem(journal: Journal, truth: Truth, asked: SentRequest, got: Answered) -> str:
    """What is wrong with an answer; '' if nothing is."""
    return _decision_problem(journal, asked, got) or _text_problem(journal, truth, asked, got)


def _decision_problem(journal: Journal, asked: SentRequest, got: Answered) -> str:
    name, _, version = asked.adapter.partition("@")
    if asked.adapter and (got.name, version and got.version) != ("" if name == BASE else name, version):
        return f"{asked.adapter} was asked for, {got.name}@{got.version} answered"
    if not got.name:
        return "the base has a digest" if got.digest else ""
    if not journal.may_see(asked.client, got.name, got.start, got.end):
        return f"{asked.client} may not know of {got.name}"
    content = journal.contents.get((got.name, got.version), {}).get(got.digest)
    if content is None:
        return f"{got.name}@{got.version} never had the digest {got.digest}"
    if not content.may_answer(got.start, got.end):
        age = got.start - content.over if got.start > content.over else content.begun - got.end
        return f"{got.name}@{got.version} answered with generation {content.generation}, {age:.3f} s off"
    return ""


def _text_problem(journal: Journal, truth: Truth, asked: SentRequest, got: Answered) -> str:
    content = journal.contents[got.name, got.version][got.digest] if got.name else None
    tenant = journal.entry(asked.client).tenant
    text = truth.text(tenant, got.response_id, content, asked.prompt)
    if got.text == text if got.whole else text.startswith(got.text):
        return ""
    return f"the answer is {got.text!r} and not {text!r}"
