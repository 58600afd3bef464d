"""A grammar is tried in a process of its own before it is compiled in the server's.

A small process, which has read the vocabulary once, makes a child for each grammar: it compiles it and walks
some tokens through it. So the server never meets a grammar that makes the library crash, that takes much
memory, or that it never finishes. What is too complex is counted (`size`, `source.limits`, `work`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from router.engine.constrained.source import VocabularySpec, limits
from router.engine.constrained.work import Lexer, Work, counts
from router.errors import EngineFailed
from router.types import ConstraintKind

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)

WALK_STEPS = 32
WALK_PAIRS = 4_000_000  # no step of a walk begins after so many: see `work`
STACK_BYTES = 4 << 20  # half of what a thread of the server has
ENDLESS_SECONDS = 20.0  # of processor time; what the counted bounds let through takes about half of one
MEMORY_BYTES = 512 << 20  # beside what the process has
MOST_FORCED = 16384  # tokens at once: no answer is as long
HUNG_SECONDS = 300.0
_ENDLESS = "cannot be compiled: llguidance does not come to an end with it"
_TOO_LARGE = "is too complex: compiling it takes too much memory"
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a process that forks has one thread
_MOST_REPLY = 1 << 18  # bytes
_LENGTH = struct.Struct("!I")


class Trials:
    """Tries grammars for one vocabulary, one at a time. Thread-safe; the process starts with the first."""

    def __init__(self, spec: VocabularySpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self._closed = False

    def run(self, grammar: str, kind: ConstraintKind) -> str:
        """What is wrong with a grammar; '' if nothing is. Raises EngineFailed if it cannot be tried."""
        with self._lock:
            for _ in range(2):  # a process that is gone is started again, once
                try:
                    return self._ask(self._started(), (grammar, kind))
                except (OSError, EOFError):
                    log.warning("the process that tries grammars is gone", exc_info=True)
                    self._stop()
        raise EngineFailed("a grammar cannot be tried")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EngineFailed("the engine has stopped")
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is the server's
            )
            weakref.finalize(self, _end, self._process)  # also if the engine is never closed
            _send(self._process, asdict(self._spec))
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], grammar: tuple[str, ConstraintKind]) -> str:
        _send(process, grammar)
        replies = process.stdout
        if replies is None or not select.select([replies], [], [], HUNG_SECONDS)[0]:
            raise EOFError("no reply in time")
        reply = _read(replies)
        if not isinstance(reply, str):
            raise EOFError("no reply")
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    if process.stdin is None:
        raise EOFError("the process has no input")
    _write(process.stdin, value)


def _write(stream: IO[bytes], value: Any) -> None:
    data = json.dumps(value).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    """A message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return json.loads(stream.read(_LENGTH.unpack(head)[0]))


# -- in the process


def main() -> None:
    """Read the vocabulary, then try grammars until the server is gone."""
    spec: Mapping[str, Any] = _read(sys.stdin.buffer)
    tokens = VocabularySpec(spec["tokenizer"], spec["width"], tuple(spec["ends"])).tokens()
    while (grammar := _read(sys.stdin.buffer)) is not None:
        _write(sys.stdout.buffer, _in_child(tokens, *grammar))


def _in_child(tokens: LLTokenizer, grammar: str, kind: ConstraintKind) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _bound()
            os.write(writer, tried(tokens, grammar, kind).encode()[:_MOST_REPLY])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return _ENDLESS if os.WTERMSIG(status) == signal.SIGPROF else _TOO_LARGE
    return reply[1:].decode(errors="replace") if reply else _TOO_LARGE


def _bound() -> None:
    """From here on the kernel ends this process when it has used its memory, or hangs."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    signal.setitimer(signal.ITIMER_PROF, ENDLESS_SECONDS)


def tried(tokens: LLTokenizer, grammar: str, kind: ConstraintKind) -> str:
    """`+`, then what is wrong: nothing where it compiles and a walk through it finds no fault."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits(kind))
    if not matcher.is_error():
        _walk(matcher, tokens)
    if forced_too_long(matcher):
        return f"+forces more than {MOST_FORCED} tokens: an answer could never be complete"
    return f"+{matcher.get_error()}"


def forced_too_long(matcher: LLMatcher) -> bool:
    """Whether what must come next is longer than any answer."""
    return not matcher.is_error() and len(matcher.compute_ff_tokens()) > MOST_FORCED


def _walk(matcher: LLMatcher, tokens: LLTokenizer) -> None:
    """An answer drawn at random, as far as that goes; it ends in the state that is at fault, if any is."""
    chance, ends = random.Random(0), frozenset(tokens.eos_tokens)
    begin = counts(matcher)
    work = Work(begin, Lexer(begin.fuel))
    for _ in range(WALK_STEPS):
        forced = matcher.compute_ff_tokens()
        if len(forced) > MOST_FORCED or not matcher.consume_tokens(forced):
            return
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error() or matcher.is_stopped():
            return
        work.add(counts(matcher))
        allowed = [
            i for i in np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() if i not in ends
        ]
        if not allowed or not matcher.consume_token(chance.choice(allowed)) or work.pairs > WALK_PAIRS:
            return


if __name__ == "__main__":
    main()
