"""A prefill server that holds what it computed, and a decode server that reads it."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull
from tests.effort import examples

RULES: dict[str, Any] = {"max_num_batched_tokens": 64, "max_num_seqs": 2, "max_model_len": 4096}


def pool(blocks: int) -> PagedKV:
    return PagedKV(blocks, 16, prefix_caching=True)


def request(index: int, prompt: int, output: int) -> Sequence:
    return Sequence(index, prompt, output, 0.0, runs=((index, 0, prompt),), shareable_tokens=prompt)


def test_the_prefill_server_holds_blocks_until_the_reader_has_them() -> None:
    server = PrefillOfPull(ContinuousRules(**RULES), pool(5))
    first, second = request(0, 40, 1), request(1, 40, 1)
    for seq in (first, second):
        server.add(seq)
    batch = server.schedule(0.0)
    assert batch is not None
    assert server.settle(batch) == [first]
    assert server.kv.free_blocks == 2
    assert server.schedule(1.0) is None  # the second needs three blocks
    assert server.turns()
    server.release(first)
    batch = server.schedule(2.0)
    assert batch is not None
    assert server.settle(batch) == [second]


def test_the_decode_server_loads_beyond_its_rows_and_computes_the_last_token_again() -> None:
    server = DecodeOfPull(ContinuousRules(**RULES), pool(9), record_rows=True)
    requests = [request(i, 40, 4) for i in range(4)]
    for seq in requests:
        server.add(seq)
    assert server.schedule(0.0) is None
    assert [(note.seq.index, note.tokens) for note in server.notes] == [(0, 40), (1, 40), (2, 40)]
    assert server.queued() == requests[3:]  # its blocks do not fit, and nothing overtakes it
    for seq in requests[2::-1]:
        server.arrived(seq)
    batch = server.schedule(1.0)
    assert batch is not None
    assert batch.rows == [(requests[0], 1, 39), (requests[1], 1, 39)]  # two rows; the third keeps its blocks
    assert list(server.loading()) == requests[2:3]


def test_under_priority_those_whose_blocks_are_there_are_admitted_by_it() -> None:
    server = DecodeOfPull(ContinuousRules(**{**RULES, "max_num_seqs": 1}, policy="priority"), pool(9), record_rows=True)
    late, soon = request(0, 40, 4), request(1, 40, 4)
    late.priority = 5
    for seq in (late, soon):  # the less urgent one begins to load before the other has come
        server.add(seq)
        assert server.schedule(0.0) is None
    for seq in (late, soon):
        server.arrived(seq)
    batch = server.schedule(1.0)
    assert batch is not None
    assert batch.rows == [(soon, 1, 39)]


@settings(max_examples=examples(80), derandomize=True)
@given(
    st.integers(0, 1 << 30),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=14),
    st.lists(st.sampled_from([None, 20, 64, 128]), min_size=2, max_size=4),
    st.integers(1, 2),
    st.booleans(),
)
def test_of_windows_what_is_read_is_what_is_taken_and_all_comes_back(
    seed: int, spare: int, asked: list[tuple[int, int, int]], windows: list[int | None], in_flight: int, sparse: bool
) -> None:
    """Reads arrive in any order, pools are small: closed form of each read, blocks in use are those of who holds any."""
    chance = Random(seed)
    tightest = sum(-(-400 // 16) if window is None else -(-(window + 128) // 16) + 1 for window in windows)
    kv = HybridKV(
        tightest + spare,
        16,
        tuple(windows),
        prefix_caching=True,
        most_in_flight_tokens=64 * in_flight,
        max_model_len=4096,
        sparse_windows=sparse,
    )
    spans = tuple(sorted({window for window in windows if window is not None}))
    server = DecodeOfPull(ContinuousRules(**{**RULES, "max_num_seqs": 4}, in_flight=in_flight), kv, windows=spans)
    waiting = [
        Sequence(i, prompt, output, 0.0, runs=((1000 + shared, 0, prompt),), shareable_tokens=prompt)
        for i, (prompt, output, shared) in enumerate(asked)
    ]
    for seq in waiting:
        server.add(seq)
    reading: list[Sequence] = []
    flying: list[Any] = []
    ended: list[Sequence] = []
    for _ in range(4000):
        if len(ended) == len(waiting):
            break
        batch = server.schedule(0.0)
        notes, server.notes = server.notes, []
        for note in notes:
            blocks, hit = -(-note.seq.prompt_tokens // 16), note.seq.computed // 16
            gone = [0 if window is None else max(0, note.seq.prompt_tokens - window + 1) // 16 for window in windows]
            assert note.tokens == 16 * sum(blocks - max(before, hit) for before in gone)
            assert kv.held(note.seq) == sum(blocks - before for before in gone)
            reading.append(note.seq)
        if batch is not None and batch.tokens:
            flying.append(batch)
        if flying and (batch is None or len(flying) == in_flight):
            ended += server.settle(flying.pop(0))
        if reading and (batch is None or chance.random() < 0.5):
            server.arrived(reading.pop(chance.randrange(len(reading))))
        held = [kv.held(seq) for seq in (*server.running, *server.loading())]
        assert max(held, default=0) <= kv.capacity_blocks - kv.free_blocks <= sum(held)  # prompts are shared, nothing is lost
    assert len(ended) == len(waiting)
    while flying:
        server.settle(flying.pop(0))
    assert kv.free_blocks == kv.capacity_blocks
