"""The tree of blocks with host memory behind it: what the device gives up goes there, and comes back when it is found.

Host memory has a line of blocks like the device's. A block that the device takes from its line for another use changes places
with the longest free of the host: it stays in the tree and stands last in the host's line, and what stood there before leaves the
tree with all below it. Whether anybody can still find a block is not asked: every block that was ever used is copied. Who is let
in brings back what it finds there, each block for one that the device takes from its line; the place that becomes empty stands
last in the host's line. A part of a block is copied, or taken over with its block, from there as from the device.

Whoever comes in with a step holds all that it finds before anything is brought (`claims_first`); before that rule each block was
brought as it was found, and what it pushed out could be the next one to be found. A block of which one would take over a part,
while another that comes in with the same step holds all of it, is copied for the one (assumed).

Source: behaviour of TensorRT-LLM of 2026 (`cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp`: `getFreeBlock`, `onboardBlock`,
`loadOrAllocateBlocks`; `evictionPolicy.cpp` at 05a91919; pull request 13029 of 2026-04 for `claims_first`), read 2026-11;
compared with no recording.
"""

from __future__ import annotations

from collections import OrderedDict

from engine_models.memory.block_tree import Block, BlockTree, first_of
from engine_models.memory.radix import Content
from engine_models.parts.sequence import Sequence


class Claim:
    """What a row has found and holds: whole blocks, and of the next one (`part`) a beginning of so many tokens.

    `takes` : whether that block is taken over, else it is copied. `there` : tokens found in host memory.
    """

    __slots__ = ("held", "part", "part_tokens", "takes", "there")

    def __init__(self) -> None:
        self.held: list[Block] = []
        self.part: Block | None = None
        self.part_tokens = self.there = 0
        self.takes = False


class HostedTree(BlockTree):
    """The KV blocks of one rank on its device and in host memory.

    Parameters
    ----------
    host_blocks : blocks that the host's memory holds, at least one.
    claims_first : see above.
    Others as of the base.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        host_blocks: int,
        claims_first: bool = True,
        prefix_caching: bool = True,
        partial: bool = True,
        copies: bool = True,
        returns: bool = True,
    ) -> None:
        super().__init__(
            capacity_blocks, block_tokens, prefix_caching=prefix_caching, partial=partial, copies=copies, returns=returns
        )
        self.host_blocks = host_blocks
        self.claims_first = claims_first
        self.host_free = host_blocks  # all but those that are held, about to be brought
        self.sent_tokens = self.brought_tokens = 0
        self.found_there = 0  # tokens that the last row taken found in host memory
        self._host_fresh = host_blocks
        self._host_line: OrderedDict[Block, None] = OrderedDict()
        self._claims: dict[Sequence, Claim] = {}

    def alike_blocks(self) -> int:
        """As of the base: those that nothing is copied for."""
        return self._fresh if self.prefix_caching else self.free_blocks

    # -- taking ---------------------------------------------------------------------------------------------

    def claim(self, seq: Sequence, content: Content, tokens: int) -> None:
        """Hold what a row of so many tokens finds, before it takes its blocks."""
        if self.prefix_caching:
            self._claims[seq] = self._find(content, tokens - 1)

    def _find(self, content: Content, limit: int) -> Claim:
        size, node, found, claim = self.block_tokens, self.root, 0, Claim()
        while found < limit:
            end = min(found + size, limit)
            child = node.children.get(content.slice(found, end))
            if child is not None and end - found == size:
                claim.there += size if child.away and not child.refs else 0
                self._hold(child)
                if not self.claims_first:
                    self._bring(child)
                claim.held.append(child)
                node, found = child, end
                continue
            equal = end - found
            if child is None and self.partial:
                equal, child = self._best_part(node, content, found, end)
            if child is not None:
                claim.part, claim.part_tokens = child, equal
                claim.takes = not (child.refs or child.children)
                claim.there += equal if child.away and not child.refs else 0
                if claim.takes:
                    self._hold(child)
                elif child.away:
                    self.brought_tokens += equal
            break
        return claim

    def take(self, seq: Sequence, content: Content, tokens: int) -> int:
        """As of the base."""
        if not self.prefix_caching:
            self.found_there = 0
            return super().take(seq, content, tokens)
        claim = self._claims.pop(seq, None) or self._find(content, tokens - 1)
        self.found_there = claim.there
        held: list[Block | None] = []
        for block in claim.held:
            self._bring(block)
            held.append(block)
        part = claim.part
        if part is not None and claim.takes and part.refs > 1:
            part.refs -= 1
            self.brought_tokens += claim.part_tokens if part.away else 0
        elif part is not None and claim.takes:
            self._leave_tree(part)
            self._bring(part)
            part.refs = 0
            held.append(None)
        blocks = -(-tokens // self.block_tokens)
        self.draw(blocks - len(held))
        found = len(claim.held) * self.block_tokens + claim.part_tokens
        held.extend([None] * (blocks - len(held)))
        seq.blocks, seq.extra_blocks = held, 0
        return found

    def _hold(self, block: Block) -> None:
        if block.away and not block.refs:
            del self._host_line[block]
            self.host_free -= 1
            block.refs = 1
            return
        super()._hold(block)

    def _bring(self, block: Block) -> None:
        """Copy a block that is held to the device, if it is not there; its place in host memory is empty."""
        if not block.away:
            return
        self.draw(1)
        block.away = False
        self._stand(Block())
        self.host_free += 1
        self.brought_tokens += self.block_tokens

    # -- giving up ------------------------------------------------------------------------------------------

    def _give_up(self, block: Block) -> None:
        """As of the base, after it changes places with the longest free of the host; of many one does after the other."""
        if not self.host_free:
            self._leave_tree(block)
            return
        self.sent_tokens += block.many * self.block_tokens
        block.many = min(block.many, self.host_free)  # of more the last push out those before them
        fresh = min(block.many, self._host_fresh)
        self._host_fresh -= fresh
        self._stand(block)
        for other in first_of(self._host_line, block.many - fresh):
            other.away = False
            self._leave_tree(other)

    def _stand(self, block: Block) -> None:
        """Put a block behind the host's line."""
        block.away = True
        self._host_line[block] = None


__all__ = ["HostedTree"]
