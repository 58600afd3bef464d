"""Blocks of the KV cache: who owns which, and which hold a known prefix.

A full block is known by a sha256 chain over base digest, adapter digest and tokens, so a prefix is
reused only where the very same weights computed it (vLLM #42125 shows what a name as key does). Where an
adapter is activated behind a prompt's beginning, its digest comes in there. Behind what a template begins
with for everybody, the chain goes on with a salt: nobody finds there what others asked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.engine.ops import BLOCK


def chain_root(base_digest: str, adapter_digest: str | None) -> bytes:
    """Start of the hash chain: the weights that compute the keys and values."""
    return hashlib.sha256(f"{base_digest}\n{adapter_digest or ''}".encode()).digest()


def activated(adapter_digest: str, inactive: int) -> bytes:
    """What a chain of the base goes on with where an adapter acts behind the first `inactive` tokens."""
    return hashlib.sha256(f"{adapter_digest}\n{inactive}".encode()).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block whose predecessor has hash `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class Salts:
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
class Allocation:
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
        without: Iterable[Allocation] = (),
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
    ) -> Allocation | None:
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
        return Allocation(blocks, len(shared) * BLOCK, len(shared))

    def grow(self, allocation: Allocation) -> bool:
        """One more block; False if there is none."""
        if not self.free:
            return False
        allocation.blocks.append(self._take())
        return True

    def publish(self, allocation: Allocation, chain: Chain, tokens: Sequence[int], computed: int) -> None:
        """Make full blocks that were just computed known to later prompts."""
        if not self._prefix_cache:
            return
        for index in range(allocation.published, computed // BLOCK):
            key, block = chain.at(tokens, index), allocation.blocks[index]
            if key not in self._block_of and block not in self._hash_of:
                self._block_of[key] = block
                self._hash_of[block] = key
            allocation.published = index + 1

    def release(self, allocation: Allocation) -> None:
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
