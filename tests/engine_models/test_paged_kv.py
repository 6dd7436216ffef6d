"""The counting KV cache against one that keeps every block, on random sequences of operations."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.block_names import ChainKeys
from engine_models.parts.sequence import Sequence
from tests.effort import examples


class PlainBlock:
    """One block: its number, content (a chain of tokens) once hashed, and how many hold it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.content: tuple[tuple[int, int], ...] | None = None
        self.holders = 0


class PlainKV:
    """Block by block: a free queue of numbered blocks, a table of cached contents, tuples of tokens as hashes."""

    def __init__(self, blocks: int, size: int, *, caching: bool, to_head: bool) -> None:
        self.size, self.caching, self.to_head = size, caching, to_head
        self.queue: OrderedDict[int, PlainBlock] = OrderedDict((n, PlainBlock(n)) for n in range(blocks))
        self.cached: dict[tuple[tuple[int, int], ...], list[PlainBlock]] = {}
        self.tables: dict[Sequence, list[PlainBlock]] = {}

    @property
    def free_blocks(self) -> int:
        return len(self.queue)

    def find(self, tokens: list[tuple[int, int]], known: int) -> list[PlainBlock]:
        found = []
        for i in range((known - 1) // self.size if self.caching else 0):
            same = self.cached.get(tuple(tokens[: (i + 1) * self.size]))
            if not same:
                break
            found.append(same[0])
        return found

    def hold(self, seq: Sequence, found: list[PlainBlock]) -> None:
        for block in found:
            self.queue.pop(block.number, None)
            block.holders += 1
        self.tables[seq] = list(found)

    def grow(self, seq: Sequence, tokens: int) -> None:
        table = self.tables.setdefault(seq, [])
        while len(table) * self.size < tokens:
            _, block = self.queue.popitem(last=False)
            if block.content is not None:
                self.cached[block.content].remove(block)
                block.content = None
            block.holders = 1
            table.append(block)

    def register(self, seq: Sequence, tokens: list[tuple[int, int]], known: int) -> None:
        if not self.caching:
            return
        for i, block in enumerate(self.tables[seq][: known // self.size]):
            if block.content is None:
                block.content = tuple(tokens[: (i + 1) * self.size])
                self.cached.setdefault(block.content, []).append(block)

    def release(self, seq: Sequence) -> None:
        first, last = [], []
        for block in reversed(self.tables.pop(seq, [])):
            block.holders -= 1
            if block.holders == 0:
                (first if block.content is None and self.to_head else last).append(block)
        for block in reversed(first):
            self.queue[block.number] = block
            self.queue.move_to_end(block.number, last=False)
        for block in last:
            self.queue[block.number] = block


operations = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "grow", "grow", "finish", "preempt", "resume"]),
        st.integers(0, 30),
        st.integers(1, 40),
    ),
    max_size=60,
)


@pytest.mark.parametrize("which", ["counting", "one group"])
@settings(max_examples=examples(400), derandomize=True)
@given(
    operations,
    st.sampled_from([2, 4]),
    st.integers(8, 30),
    st.booleans(),
    st.booleans(),
)
def test_same_hits_and_same_free_blocks_as_block_by_block(
    which: str, steps: list[tuple[str, int, int]], size: int, blocks: int, caching: bool, to_head: bool
) -> None:
    kv: PagedKV | HybridKV
    if which == "counting":
        kv = PagedKV(blocks, size, prefix_caching=caching, unhashed_to_head=to_head)
    else:
        kv = HybridKV(
            blocks,
            size,
            (None,),
            prefix_caching=caching,
            unhashed_to_head=to_head,
            most_in_flight_tokens=64,
            max_model_len=4096,
        )
    plain = PlainKV(blocks, size, caching=caching, to_head=to_head)
    tokens: dict[Sequence, list[tuple[int, int]]] = {}
    alive: list[Sequence] = []
    away: list[Sequence] = []

    def admit(seq: Sequence) -> bool:
        found, same = kv.find(seq), plain.find(tokens[seq], seq.length)
        assert kv.hit_tokens(found) == len(same) * size  # type: ignore[arg-type]
        cost = kv.admission_blocks(found, seq.length, whole=False)  # type: ignore[arg-type]
        assert cost == -(-seq.length // size) - sum(block.holders > 0 for block in same)
        if cost > kv.free_blocks:
            return False
        if same:
            kv.hold(seq, found)  # type: ignore[arg-type]
        plain.hold(seq, same)
        extend(seq, seq.length)
        return True

    def extend(seq: Sequence, to: int) -> None:
        kv.grow(seq, to)
        plain.grow(seq, to)
        seq.computed = to
        kv.register(seq, to)
        plain.register(seq, tokens[seq], to)

    for index, (what, choice, amount) in enumerate(steps):
        if what == "start":
            segment, final = choice % 3, amount + 12
            shared = min(amount, (choice // 3) * 3)
            runs = (
                ((segment, 0, shared), (100 + index, 0, final - shared))
                if shared
                else ((100 + index, 0, final),)
            )
            seq = Sequence(index, amount, 12, 0.0, runs=runs, shareable_tokens=amount, output_shared=True)
            tokens[seq] = [(s, o + j) for s, o, n in runs for j in range(n)]
            if admit(seq):
                alive.append(seq)
        elif what == "resume" and away:
            seq = away[choice % len(away)]
            if admit(seq):
                away.remove(seq)
                alive.append(seq)
        elif alive and what in ("grow", "finish", "preempt"):
            seq = alive[choice % len(alive)]
            if what == "grow":
                to = min(seq.computed + amount, seq.final_length - 1)
                if to > seq.computed and kv.missing(seq, to) <= kv.free_blocks:
                    seq.length = to
                    extend(seq, to)
            else:
                alive.remove(seq)
                if what == "preempt":
                    kv.make_findable(seq)
                    away.append(seq)
                else:
                    kv.name_output(seq)
                    kv.register(seq, seq.computed)
                kv.release(seq)
                plain.release(seq)
                seq.computed = 0
        assert kv.free_blocks == plain.free_blocks
    for seq in alive:
        kv.release(seq)
    assert kv.free_blocks == blocks


@settings(max_examples=examples(100), derandomize=True)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 7)), max_size=5), max_size=4
    )
)
def test_keys_are_equal_exactly_where_the_tokens_are(contents: list[list[tuple[int, int, int]]]) -> None:
    """Runs that continue one another are merged, as the workload does: equal tokens then have equal runs."""
    chain = ChainKeys(3)
    named: list[tuple[list[int], list[tuple[int, int]]]] = []
    for content in contents:
        runs: list[tuple[int, int, int]] = []
        for segment, offset, length in content:
            if runs and runs[-1][0] == segment and sum(runs[-1][1:]) == offset:
                runs[-1] = (segment, runs[-1][1], runs[-1][2] + length)
            else:
                runs.append((segment, offset, length))
        tokens = [(s, o + j) for s, o, n in runs for j in range(n)]
        named.append((chain.keys(tuple(runs), len(tokens) // 3), tokens))
    for keys, tokens in named:
        assert len(keys) == len(tokens) // 3
        for others, other in named:
            for i, (a, b) in enumerate(zip(keys, others, strict=False)):
                assert (a == b) == (tokens[: 3 * i + 3] == other[: 3 * i + 3])


def window_kv(**changes: object) -> HybridKV:
    settings_: dict = {"prefix_caching": True, "most_in_flight_tokens": 32, "max_model_len": 1000}
    return HybridKV(100, 4, (None, 8), **{**settings_, **changes})


def test_a_window_group_holds_its_window_only() -> None:
    """At 40 of 48 tokens a window of 8 still sees tokens 33..40: blocks 0..7 of the group are free again."""
    kv = window_kv()
    seq = Sequence(0, 40, 8, 0.0)
    kv.hold(seq, kv.find(seq))
    kv.grow(seq, 40)
    assert kv.free_blocks == 100 - 20
    kv.leave_window(seq, 40, 40)
    assert kv.free_blocks == 100 - 20 + 8
    kv.release(seq)
    assert kv.free_blocks == 100


def test_a_window_follows_what_is_processed() -> None:
    for frees_processed, freed in ((True, 3), (False, 8)):
        kv = window_kv(frees_processed=frees_processed)
        seq = Sequence(0, 40, 8, 0.0)
        kv.hold(seq, kv.find(seq))
        kv.grow(seq, 40)
        kv.leave_window(seq, 40, 20)
        assert kv.free_blocks == 80 + freed


def test_admission_gate_counts_a_window_group_by_its_window() -> None:
    """200 tokens: 50 blocks of full attention; of the window at most ceil((8 - 1 + 32) / 4) + 1 = 11."""
    seq = Sequence(0, 200, 8, 0.0)
    kv = window_kv()
    assert kv.admission_blocks(kv.find(seq), 200, whole=True) == 61
    assert kv.admission_blocks(kv.find(seq), 200, whole=False) == 100
    kv = window_kv(capped_admission=False)
    assert kv.admission_blocks(kv.find(seq), 200, whole=True) == 100


def test_a_hit_must_hold_in_every_group() -> None:
    """Only the end of the prompt can be resumed at; a shorter prefix of it finds nothing, and notes the place."""
    runs = ((7, 0, 48),)

    def finished_first(sparse: bool) -> HybridKV:
        kv = window_kv(sparse_windows=sparse)
        first = Sequence(0, 41, 7, 0.0, runs=runs, shareable_tokens=41)
        kv.hold(first, kv.find(first))
        kv.grow(first, 41)
        kv.register(first, 41)
        kv.release(first)
        return kv

    for sparse, shorter_hit in ((True, 0), (False, 24)):
        kv = finished_first(sparse)
        again = Sequence(1, 41, 7, 0.0, runs=runs, shareable_tokens=41)
        assert kv.find(again).tokens == 40
        shorter = Sequence(2, 26, 7, 0.0, runs=((7, 0, 24), (8, 0, 2)), shareable_tokens=26)
        assert kv.find(shorter).tokens == shorter_hit
        assert shorter.junction_tokens == (24 if sparse else 0)
