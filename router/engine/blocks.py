"""Blocks of the KV cache: who owns which, and which hold a known prefix.

A full block is known by a sha256 chain over base digest, adapter digest and tokens, so a prefix is
reused only where the very same weights computed it (vLLM #42125 shows what a name as key does).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from router.engine.ops import BLOCK


def chain_root(base_digest: str, adapter_digest: str | None) -> bytes:
    """Start of the hash chain: the weights that compute the keys and values."""
    return hashlib.sha256(f"{base_digest}\n{adapter_digest or ''}".encode()).digest()


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block whose predecessor has hash `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


@dataclass(slots=True)
class Allocation:
    """The blocks of one row. The first `cached_tokens` tokens are already computed."""

    blocks: list[int]
    cached_tokens: int
    hashes: list[bytes]  # of full blocks known so far, in order


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

    def allocate(self, root: bytes, prompt: Sequence[int], total_tokens: int) -> Allocation | None:
        """Blocks for `total_tokens`, with as much of the prompt's prefix reused as is known.

        At least one prompt token is always left to compute. None if there is no room.
        """
        hashes, shared = self._known_prefix(root, prompt)
        idle_shared = sum(1 for b in shared if not self._users[b])
        fresh = self.needed(total_tokens) - len(shared)
        if fresh > self.free - idle_shared:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks = shared + [self._take() for _ in range(fresh)]
        self.query_tokens += len(prompt)
        self.hit_tokens += len(shared) * BLOCK
        return Allocation(blocks, len(shared) * BLOCK, hashes)

    def publish(self, allocation: Allocation, root: bytes, tokens: Sequence[int], computed: int) -> None:
        """Make full blocks that were just computed known to later prompts."""
        if not self._prefix_cache:
            return
        hashes = allocation.hashes
        for index in range(len(hashes), computed // BLOCK):
            parent = hashes[-1] if hashes else root
            key = chain_hash(parent, tokens[index * BLOCK : (index + 1) * BLOCK])
            hashes.append(key)
            block = allocation.blocks[index]
            if key not in self._block_of and block not in self._hash_of:
                self._block_of[key] = block
                self._hash_of[block] = key

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

    def _known_prefix(self, root: bytes, prompt: Sequence[int]) -> tuple[list[bytes], list[int]]:
        hashes: list[bytes] = []
        shared: list[int] = []
        if not self._prefix_cache:
            return hashes, shared
        parent = root
        for index in range((len(prompt) - 1) // BLOCK):
            parent = chain_hash(parent, prompt[index * BLOCK : (index + 1) * BLOCK])
            block = self._block_of.get(parent)
            if block is None:
                break
            hashes.append(parent)
            shared.append(block)
        return hashes, shared

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._users[block] = 1
        return block
