"""A second tier of KV blocks in host memory, behind the prefix cache of the device, as vLLM's native offload connector has it.

Every full block of a prompt is copied to the host after the step that computed it (of generated tokens too in vLLM up to 0.19),
and stays there until newer ones push it out, least recently used first. A waiting request whose prefix goes on in the host tier
where the device's cache ends is given device blocks at once and loads them over the link, one load after another; it can be
scheduled when its load has ended. Meanwhile others run: copies take no compute.

Blocks that no other request can find are counted, not named; a preempted request's are named then, for it may come back to
find them.

Source: `vllm/v1/kv_offload/` (the LRU manager) and `distributed/kv_transfer/kv_connector/v1/offloading_connector.py` in public
copies of 0.11 to 0.19, read 2026-11. A store is visible one step after the step that computed it: the copy of a block takes less
than a step.
"""

from __future__ import annotations

from collections import OrderedDict

from engine_models.parts.sequence import Sequence


class Stored:
    """Blocks of one request that only it could find: one place in the order of use, however many they are."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class HostTier:
    """Blocks in host memory of one replica.

    Parameters
    ----------
    capacity_blocks : blocks that fit.
    block_tokens : tokens a block.
    block_bytes : bytes of a block on one rank; ranks load their parts side by side.
    link_bytes_per_s : rate of a copy from host to device.
    stores_outputs : whether blocks of generated tokens are stored too.
    """

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        *,
        block_bytes: int,
        link_bytes_per_s: float,
        stores_outputs: bool,
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.stores_outputs = stores_outputs
        self.blocks = 0
        self._block_s = block_bytes / link_bytes_per_s
        self._entries: OrderedDict[int | Stored, int] = OrderedDict()  # -> first batch that may find it
        self._loading_keys: dict[int, int] = {}
        self._link_free_s = 0.0

    # -- storing --------------------------------------------------------------------------------------------

    def store(self, seq: Sequence, known_tokens: int, batch: int) -> None:
        """Copy the sequence's full blocks of `known_tokens` tokens that were not copied yet; batch `batch` computes them."""
        tokens = known_tokens if self.stores_outputs else min(known_tokens, seq.prompt_tokens)
        full = tokens // self.block_tokens
        if full <= seq.host_blocks:
            return
        keys = seq.keys or []
        entries = self._entries
        named = keys[seq.host_blocks : full]
        for key in named:
            if key in entries:
                entries.move_to_end(key)
            else:
                entries[key] = batch + 1
                self.blocks += 1
        private = full - max(seq.host_blocks, len(keys))
        if private > 0:
            run = seq.host_run
            if run is None or run not in entries:
                run = seq.host_run = Stored(0)
                entries[run] = batch + 1
            run.blocks += private
            self.blocks += private
            entries.move_to_end(run)
        seq.host_blocks = full
        self._evict()

    def _evict(self) -> None:
        excess = self.blocks - self.capacity_blocks
        entries = self._entries
        while excess > 0:
            entry = next(iter(entries))
            if isinstance(entry, Stored):
                taken = min(excess, entry.blocks)
                entry.blocks -= taken
                if not entry.blocks:
                    del entries[entry]
            else:
                taken = 1
                del entries[entry]
            excess -= taken
            self.blocks -= taken

    def name(self, seq: Sequence) -> None:
        """Name the blocks of a preempted request, whose keys its device cache has just made: it may look itself up."""
        run = seq.host_run
        seq.host_run = None
        if run is None or run not in self._entries or not seq.keys:
            return
        ready = self._entries.pop(run)
        self.blocks -= run.blocks
        for key in seq.keys[max(0, seq.host_blocks - run.blocks) : seq.host_blocks]:
            if key not in self._entries:
                self._entries[key] = ready
                self.blocks += 1

    # -- loading --------------------------------------------------------------------------------------------

    def find(self, seq: Sequence, held_blocks: int, batch: int) -> int | None:
        """Blocks found here that follow the `held_blocks` found on the device; None if others' loads of them must end first."""
        keys = seq.keys
        if not keys:
            return 0
        entries = self._entries
        found = 0
        for key in keys[held_blocks : seq.length // self.block_tokens]:
            ready = entries.get(key)
            if ready is None or ready > batch:
                break
            if key in self._loading_keys:
                return None
            found += 1
        for key in reversed(keys[: held_blocks + found]):
            if key in entries:
                entries.move_to_end(key)
        return found

    def load(self, seq: Sequence, held_blocks: int, blocks: int, now_s: float) -> None:
        """Start loading `blocks` blocks behind the `held_blocks` of the device; `seq.loaded_s` says when they are there [s]."""
        assert seq.keys is not None
        self._link_free_s = max(self._link_free_s, now_s) + blocks * self._block_s
        seq.loaded_s = self._link_free_s
        for key in seq.keys[held_blocks : held_blocks + blocks]:
            self._loading_keys[key] = seq.index

    def end_load(self, seq: Sequence, tokens: int) -> None:
        """The load has ended: its blocks may be loaded by others again."""
        assert seq.keys is not None
        for key in seq.keys[: tokens // self.block_tokens]:
            if self._loading_keys.get(key) == seq.index:
                del self._loading_keys[key]
