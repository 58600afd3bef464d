"""Rows: the jobs of the engine's batch, and the blocks of the KV cache that they hold.

A row is an answer that grows token by token, or a pooling request.

A full block is known by a sha256 chain over base digest, adapter digest and tokens, so a prefix is reused
only where the very same weights computed it (vLLM #42125 shows what a name as key does). Where an adapter is
activated behind a prompt's beginning, its digest enters the chain there. Behind what a template begins every
prompt with, the chain goes on with a salt of the tenant: no tenant finds another's prompts there.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from router.engine.base import Finished, Job, PoolingRequest
from router.engine.ops import BLOCK
from router.engine.output import TokenOutput
from router.errors import RouterError
from router.types import FinishReason, Usage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.engine.constrained.state import GrammarState
    from router.engine.labels import LabelNotes
    from router.engine.output import Detokenizer, Receiver
    from router.engine.sampling import SamplingState

ANSWER_COST = 2  # of a token of an answer, in tokens of a prompt


def chain_root(base_digest: str, adapter_digest: str | None) -> bytes:
    """Start of the hash chain: the weights that compute the keys and values."""
    return hashlib.sha256(f"{base_digest}\n{adapter_digest or ''}".encode()).digest()


def activated(adapter_digest: str, inactive: int) -> bytes:
    """What a chain of the base goes on with where an adapter acts behind the first `inactive` tokens."""
    return hashlib.sha256(f"{adapter_digest}\n{inactive}".encode()).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block whose predecessor has hash `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class CacheSalts:
    """A secret salt for each owner of blocks; blocks do not outlive the process, nor do the salts."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, owner: str) -> bytes:
        """That of an owner."""
        return hmac.digest(self._secret, owner.encode(), "sha256")


class Chain:
    """Hashes of the full blocks of one row's tokens, made once: tokens are only ever added."""

    def __init__(
        self, root: bytes, salt: bytes = b"", shared: int = 0, adapter: bytes = b"", inactive: int = 0
    ) -> None:
        """`salt`: of all blocks but those that lie wholly within the first `shared` tokens.

        `adapter`: likewise, but for the first `inactive` tokens; see `activated`.
        """
        self._root = root
        self._joins: dict[int, bytes] = {}  # what comes in before a block
        for place, more in ((shared, salt), (inactive, adapter)):
            if more:
                self._joins[place // BLOCK] = self._joins.get(place // BLOCK, b"") + more
        self._hashes: list[bytes] = []

    def at(self, tokens: Sequence[int], index: int) -> bytes:
        """The hash of full block `index`."""
        hashes = self._hashes
        while len(hashes) <= index:
            start = len(hashes) * BLOCK
            parent = hashes[-1] if hashes else self._root
            if (more := self._joins.get(len(hashes))) is not None:
                parent = hashlib.sha256(parent + more).digest()
            hashes.append(chain_hash(parent, tokens[start : start + BLOCK]))
        return hashes[index]


@dataclass(slots=True)
class CacheAllocation:
    """The blocks of one row. The first `cached_tokens` tokens are already computed."""

    blocks: list[int]  # only ever added to, until all are given back
    cached_tokens: int
    published: int  # full blocks, from the first on, that later prompts know of or never will


class BlockPool:
    """Reference-counted blocks; freed blocks with a known prefix stay until they are needed."""

    def __init__(self, blocks: int, *, prefix_cache: bool = True) -> None:
        self.total = blocks
        self._prefix_cache = prefix_cache
        self._free = list(range(blocks - 1, -1, -1))  # never used or without a known prefix
        self._idle: OrderedDict[int, None] = OrderedDict()  # known prefix, no user; oldest first
        self._users = [0] * blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.hit_tokens = 0
        self.query_tokens = 0

    @property
    def free(self) -> int:
        """Blocks that an allocation could take."""
        return len(self._free) + len(self._idle)

    @staticmethod
    def needed(tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // BLOCK)

    def fits(
        self,
        chain: Chain,
        prompt: Sequence[int],
        total_tokens: int,
        spare: int = 0,
        without: Iterable[CacheAllocation] = (),
    ) -> bool:
        """Whether `allocate` finds room and leaves `spare` blocks, once those of `without` are given back."""
        held = Counter(block for allocation in without for block in allocation.blocks)
        given_back = {block for block, users in held.items() if users == self._users[block]}
        room = self.free + len(given_back) - spare
        if room <= 0:  # a token at least is left to compute, so a block at least is fresh
            return False
        shared = self._known_prefix(chain, prompt)
        kept = sum(1 for b in shared if not self._users[b] or b in given_back)
        return self.needed(total_tokens) - len(shared) <= room - kept

    def allocate(
        self, chain: Chain, prompt: Sequence[int], total_tokens: int, *, counted: bool = True
    ) -> CacheAllocation | None:
        """Blocks for `total_tokens`, with as much of the prompt's prefix reused as is known.

        At least one prompt token is always left to compute. None if there is no room. `counted`: the prompt
        counts as looked up.
        """
        shared = self._known_prefix(chain, prompt)
        idle_shared = sum(1 for b in shared if not self._users[b])
        fresh = self.needed(total_tokens) - len(shared)
        if fresh > self.free - idle_shared:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks = shared + [self._take() for _ in range(fresh)]
        if counted:
            self.query_tokens += len(prompt)
            self.hit_tokens += len(shared) * BLOCK
        return CacheAllocation(blocks, len(shared) * BLOCK, len(shared))

    def grow(self, allocation: CacheAllocation) -> bool:
        """One more block; False if there is none."""
        if not self.free:
            return False
        allocation.blocks.append(self._take())
        return True

    def publish(
        self, allocation: CacheAllocation, chain: Chain, tokens: Sequence[int], computed: int
    ) -> None:
        """Make full blocks that were just computed known to later prompts."""
        if not self._prefix_cache:
            return
        for index in range(allocation.published, computed // BLOCK):
            key, block = chain.at(tokens, index), allocation.blocks[index]
            if key not in self._block_of and block not in self._hash_of:
                self._block_of[key] = block
                self._hash_of[block] = key
            allocation.published = index + 1

    def release(self, allocation: CacheAllocation) -> None:
        """Give the blocks back; known ones stay reusable until the room is needed."""
        for block in reversed(allocation.blocks):  # so that the beginning of a prefix is evicted last
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._hash_of:
                self._idle[block] = None
            else:
                self._free.append(block)
        allocation.blocks = []

    def _known_prefix(self, chain: Chain, prompt: Sequence[int]) -> list[int]:
        shared: list[int] = []
        if not self._prefix_cache:
            return shared
        for index in range((len(prompt) - 1) // BLOCK):
            block = self._block_of.get(chain.at(prompt, index))
            if block is None:
                break
            shared.append(block)
        return shared

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._users[block] = 1
        return block


# -- Rows.

_numbers = count()


@dataclass(slots=True, eq=False, kw_only=True)
class BatchRow:
    """Tokens, blocks and progress of one job, as the scheduler sees it. Touched by the engine thread only."""

    samples: ClassVar[bool] = True  # a token follows its last one

    stream: Receiver
    tokens: list[int] = field(init=False)
    total: int = field(init=False)  # most tokens it can grow to
    chain: Chain = field(init=False)  # from `Scheduler.add` on
    adapter: str | None = field(init=False, default=None)  # digest, None for the base
    deadline: float | None = field(init=False, default=None)  # time.monotonic() seconds
    priority: int = field(init=False, default=0)
    background: bool = field(init=False, default=False)  # every request goes before it
    owner: str = field(init=False)  # only this owner finds its blocks again, except those of `shared` tokens
    shared: int = field(init=False, default=0)
    inactive: int = 0  # tokens at its beginning that the base computes: before the adapter is activated
    tenant: str = field(init=False, default="")
    share: float = field(init=False, default=1.0)
    paid: int = 0  # the part of its cost that its tenant was charged
    arrived: float = field(default_factory=time.monotonic)
    number: int = field(default_factory=_numbers.__next__)  # in the order of arrival
    queued: float = 0.0  # since when it waits: since it arrived or was last preempted
    admitted: float = 0.0  # for the first time
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of these, taken from the prefix cache when it was first admitted
    preempted: int = 0  # times
    skipped: int = 0  # steps of others, since its masks were much work
    allocation: CacheAllocation | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in the order of rows: higher priority first, then earlier arrival. No two are equal."""
        return (-self.priority, self.number)

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values other rows may use."""
        return self.tokens

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def cost(self) -> int:
        """How much its tenant was served by it so far, in tokens of a prompt."""
        return 0

    @property
    def steps_to_skip(self) -> int:
        """Steps of others that it has to skip, by the work of its masks."""
        return 0

    @property
    def room(self) -> int:
        """Tokens that it is given blocks for when it is admitted."""
        return self.total

    def restart(self) -> None:
        """Forget what was computed: its blocks are gone. Tokens stay."""
        self.computed = 0

    @property
    def error(self) -> RouterError | None:
        """Why it cannot go on."""
        return None

    def finished(self, reason: FinishReason) -> Finished:
        """Its last event."""
        return Finished(reason)


@dataclass(slots=True, eq=False, kw_only=True)
class AnswerRow(BatchRow):
    """A prompt and the answer that grows behind it."""

    job: Job
    sampling: SamplingState
    detokenizer: Detokenizer
    eos: frozenset[int]
    grammar: GrammarState | None = None  # where the answer is in its constraint's grammar
    prompt_length: int = field(init=False)
    first_token: float = 0.0
    unsent: int = 0  # tokens whose text is still held back
    labels: LabelNotes | None = None  # where probabilities of its choices are wanted
    accepted: int = 0  # tokens of the answer that were drafts

    def __post_init__(self) -> None:
        job = self.job
        self.tokens = list(job.tokens)
        self.total = len(job.tokens) + job.params.max_tokens
        self.adapter, self.deadline = job.adapter, job.deadline
        self.priority, self.background = job.priority, job.background
        self.owner, self.shared = f"tenant {job.tenant}", job.shared
        self.tenant, self.share = job.tenant, job.share
        self.prompt_length = len(job.tokens)

    @property
    def error(self) -> RouterError | None:
        """Why a constrained answer cannot go on."""
        return None if self.grammar is None else self.grammar.error

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def cost(self) -> int:
        """Its prompt without what was cached, from its admission on, its answer and its grammar's masks.

        Nothing twice.
        """
        read = self.prompt_length - self.cached if self.admitted else 0
        masks = 0 if self.grammar is None else self.grammar.cost
        return read + ANSWER_COST * (self.generated + masks)

    @property
    def steps_to_skip(self) -> int:
        """By how many tokens its masks count more than it has made: so it gets the share of other answers."""
        return 0 if self.grammar is None else max(0, self.grammar.cost - self.generated - self.skipped)

    @property
    def room(self) -> int:
        """Its tokens and the next one; more as it grows. One in the background preempts no other: all."""
        return self.total if self.background else min(len(self.tokens) + 1, self.total)

    def length_reached(self) -> bool:
        """True once max_tokens were generated."""
        return len(self.tokens) >= self.total

    def usage(self) -> Usage:
        """Counts and times as of now, in seconds since arrival."""
        now = time.monotonic()
        started = self.admitted or now
        return Usage(
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached - self._untold,
            completion_tokens=self.generated,
            accepted_draft_tokens=self.accepted,
            queue_time=started - self.arrived,
            time_to_first_token=(self.first_token or now) - self.arrived,
            total_time=now - self.arrived,
        )

    @property
    def _untold(self) -> int:
        """Cached tokens that may be cached because of other tenants' requests."""
        return min(self.cached, self.shared // BLOCK * BLOCK) if self.job.tenant else 0

    def ended_by(self, token: int) -> FinishReason | None:
        """Why the answer ends with `token`, if it does (stop strings are the detokenizer's)."""
        if token in self.eos:
            least = self.job.params.min_tokens if self.grammar is None else 0  # a grammar wins
            if self.generated > least:
                return FinishReason.STOP
        return FinishReason.LENGTH if self.length_reached() else None

    def finished(self, reason: FinishReason) -> Finished:
        """The end, with counts and times."""
        return Finished(reason, self.usage(), self.detokenizer.stopped or "")

    def start(self) -> TokenOutput:
        """Add what a grammar forces before anything is sampled: its tokens are computed with the prompt."""
        return self._forced(TokenOutput())

    def accept(self, token: int) -> TokenOutput:
        """Add a sampled token, and what its grammar forces after it."""
        output = self._appended(token)
        if self.grammar is None or output.reason is FinishReason.STOP:
            return output
        self.grammar.accept(token)
        return self._forced(output)

    def _appended(self, token: int) -> TokenOutput:
        self.tokens.append(token)
        self.sampling.accept(token)
        reason = self.ended_by(token)
        by_token = reason is FinishReason.STOP
        text = "" if by_token else self.detokenizer.push(token)
        if self.detokenizer.stopped:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self.detokenizer.flush()
        self.unsent += not by_token
        return TokenOutput(text, reason, by_token)

    def _forced(self, output: TokenOutput) -> TokenOutput:
        """`output` and what is forced after it. An answer that is whole ends without another step."""
        grammar = self.grammar
        if grammar is None:
            return output
        forced = grammar.forced() if output.reason is None else []
        for left, token in zip(reversed(range(len(forced))), forced, strict=True):
            more = self._appended(token)
            output = more._replace(text=output.text + more.text)
            if output.reason is not None and left:
                return output
        if not grammar.complete or output.reason is FinishReason.STOP:
            return output
        rest = self.detokenizer.flush() if output.reason is None else ""
        return TokenOutput(output.text + rest, FinishReason.STOP)


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a row, from the one `after` tokens behind `row.computed` on.

    `samples`: the step computes the row's last token, so that a new one is sampled. `after`: tokens of the
    row that another chunk of the same step computes. `drafts`: tokens behind the row's last that the step
    computes, too; they are among the `count`.
    """

    row: BatchRow
    count: int
    samples: bool
    after: int = 0
    drafts: Sequence[int] = ()

    @property
    def adapter(self) -> str | None:
        """What acts on its tokens: the row's adapter, None for the base."""
        row = self.row
        return row.adapter if row.computed + self.after >= row.inactive else None


@dataclass(slots=True, eq=False, kw_only=True)
class PoolingRow(BatchRow):
    """The tokens of one pooling request and what is known of them so far."""

    samples: ClassVar[bool] = False

    request: PoolingRequest
    layer: int | None = None  # whose hidden states are wanted; None: candidates are
    sums: list[torch.Tensor] = field(default_factory=list)  # float32 [hidden] of each of `spans`
    found: list[torch.Tensor] = field(default_factory=list)  # float32, the logits of candidates

    def __post_init__(self) -> None:
        request = self.request
        self.tokens = [*request.context, *request.tokens]
        self.total = len(self.tokens)
        self.deadline, self.priority = request.deadline, -int(request.background)
        self.owner = f"tenant {request.tenant}" if request.candidates else "pooling"
        self.adapter, self.shared = request.adapter, request.shared

    @property
    def prefix(self) -> list[int]:
        """What comes before the first token that matters. Of hidden states nothing: they are wanted of every
        token, and layers are left out.
        """
        return self.tokens if self.request.candidates else []  # of tokens the last is always computed

    def restart(self) -> None:
        """Forget what was read."""
        self.computed = 0
        self.sums, self.found = [], []

    def wanted(self, count: int) -> range:
        """Which of the next `count` tokens are read for their states: not those of the context."""
        return range(max(0, len(self.request.context) - self.computed), count)

    @property
    def spans(self) -> list[range]:
        """The places among the tokens read whose means are wanted."""
        count, ends = len(self.request.tokens), self.request.ends
        whole = range(count)
        return [whole, whole[:ends], whole[max(0, count - ends) :]] if ends else [whole]

    def add(self, states: torch.Tensor) -> None:
        """Count hidden states [n, hidden] in: those wanted of the chunk that is being computed."""
        start = max(0, self.computed - len(self.request.context))
        if not self.sums:
            self.sums = [states.new_zeros(states.shape[1], dtype=torch.float32) for _ in self.spans]
        for total, span in zip(self.sums, self.spans, strict=True):
            part = states[max(0, span.start - start) : max(0, span.stop - start)]
            total += part.sum(0, dtype=torch.float32)

    def result(self) -> NDArray[np.float32] | None:
        """The values requested, once all tokens are computed; None if one is not finite."""
        means = [total / len(span) for total, span in zip(self.sums, self.spans, strict=False)]
        values = torch.cat(means or self.found)
        array: NDArray[np.float32] = values.cpu().numpy()
        return array if np.isfinite(array).all() else None


def note_labels(answering: Sequence[tuple[AnswerRow, Chunk]], logits: torch.Tensor) -> None:
    """Note the logits [S, vocabulary] of a step for the answers whose labels are wanted: those behind the
    last token of each, and then those behind the drafts."""
    behind = len(answering)
    for place, (row, chunk) in enumerate(answering):
        if row.labels is not None:
            answer = row.tokens[row.prompt_length :]
            row.labels.note(answer, logits[place])
            for count in range(len(chunk.drafts)):
                row.labels.note([*answer, *chunk.drafts[: count + 1]], logits[behind + count])
        behind += len(chunk.drafts)
