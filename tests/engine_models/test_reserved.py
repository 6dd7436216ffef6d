"""A decode server that reserves memory before the prefill server begins, and that prefill server."""

from __future__ import annotations

from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstRules
from engine_models.schedulers.reserved import (
    ReservingDecodeScheduler,
    ReservingRules,
    SendingPrefillScheduler,
)
from engine_models.schedulers.reserved_turns import StagedReservingScheduler


def decode_server(tokens: int, **knobs: int) -> ReservingDecodeScheduler:
    rules = {"max_running_requests": 8, "pre_alloc_size": 8, "metadata_buffers": 8, "max_model_len": 8192, **knobs}
    return ReservingDecodeScheduler(ReservingRules(**rules), RadixPool(tokens, prefix_caching=False), record_rows=True)


def loops(server: ReservingDecodeScheduler, times_s: list[float]) -> list[list[int]]:
    """Run loops at given times; return who was given memory in each."""
    out = []
    for now_s in times_s:
        batch = server.schedule(now_s)
        out.append([seq.index for seq in server.loop["admitted"]])
        if batch is not None:
            server.settle(batch)
    return out


def test_tokens_are_kept_back_for_every_request_that_holds_memory() -> None:
    server = decode_server(2000)
    for index in range(3):
        server.add(Sequence(index, 600, 10, 0.0))
    # 600 + 512 of 2,000; then 600 + 512 of 1,400 - 512
    assert loops(server, [0.0, 0.0015, 0.003]) == [[], [0], []]
    server.transfer.clear()
    server.kv.free_tokens = 2000
    assert loops(server, [0.004]) == [[1]]


def test_queues_are_looked_at_in_every_so_manieth_loop() -> None:
    server = decode_server(20000, polling_interval=3)
    assert loops(server, [0.0]) == [[]]
    server.turned(4)  # the sixth loop is the next to look
    server.add(Sequence(0, 600, 10, 0.0))
    assert loops(server, [0.005, 0.006, 0.007, 0.008]) == [[], [], [], [0]]
    server.arrived(next(iter(server.transfer)))
    assert server.wake_s() == 0.0


def test_a_row_without_memory_goes_to_the_host_and_comes_back() -> None:
    server = decode_server(1210, num_reserved_decode_tokens=1)
    rows = [Sequence(index, 600, 20, 0.0) for index in range(2)]
    for seq in rows:
        server.add(seq)
    loops(server, [0.0, 0.01])
    for seq in rows:
        server.arrived(seq)
    now_s = 0.1
    while any(seq.state != "finished" for seq in rows):
        loops(server, [now_s])
        now_s += 0.01
    assert [seq.preemptions for seq in rows] == [0, 1]
    tokens = [sum(last - first + 1 for first, last in seq.ranges()) for seq in rows]
    assert tokens == [20, 20]
    assert server.kv.free_tokens == 1210


def test_the_prefill_server_waits_for_memory_elsewhere_and_locks_until_all_has_arrived() -> None:
    rules = PrefillFirstRules(8, 8192, chunked_prefill_size=500)
    server = SendingPrefillScheduler(rules, RadixPool(2000), metadata_buffers=8)
    seq = Sequence(0, 800, 1, 0.0, runs=((7, 0, 800),), shareable_tokens=800)
    server.add(seq)
    assert server.schedule(0.0) is None
    server.reserved(seq)
    pieces = []
    for now_s in (1.0, 2.0):
        batch = server.schedule(now_s)
        assert batch is not None
        batch.t_end = now_s + 0.5
        server.settle(batch)
        pieces += [(note.at_s, note.tokens) for note in server.notes]
        server.notes = []
    assert pieces == [(2.0, 500), (2.5, 300)]
    assert (server.kv.free_tokens, server.kv.tree.evictable_tokens) == (1200, 0)
    server.sent(seq)
    server.schedule(3.0)
    assert (server.kv.free_tokens, server.kv.tree.evictable_tokens) == (1200, 800)


def test_a_prompt_on_its_way_keeps_its_row() -> None:
    server = SendingPrefillScheduler(PrefillFirstRules(1, 8192), RadixPool(2000), metadata_buffers=8)
    first, second = (Sequence(index, 100, 1, 0.0) for index in range(2))
    for seq in (first, second):
        server.add(seq)
        server.reserved(seq)
    batch = server.schedule(0.0)
    assert batch is not None
    assert server.settle(batch) == [first]
    assert server.schedule(1.0) is None
    server.sent(first)
    batch = server.schedule(2.0)
    assert batch is not None
    assert server.settle(batch) == [second]


def test_a_request_of_one_token_leaves_room_for_the_next_loop() -> None:
    server = decode_server(2000, max_running_requests=1, pre_alloc_size=0)
    rows = [Sequence(index, 100, 1, 0.0) for index in range(2)]
    for seq in rows:
        server.add(seq)
    assert loops(server, [0.0, 0.01]) == [[], [0]]
    server.arrived(rows[0])
    assert loops(server, [0.1]) == [[]]
    assert server.wake_s() == 0.0
    assert loops(server, [0.101]) == [[1]]


def test_memory_goes_by_whole_pages() -> None:
    pool = RadixPool(320, 16, prefix_caching=False)
    server = ReservingDecodeScheduler(ReservingRules(8, 8, 8, 8192, 1), pool, record_rows=True)
    seq = Sequence(0, 17, 20, 0.0)
    server.add(seq)
    loops(server, [0.0, 0.01])
    assert pool.free_tokens == 320 - 2 * 16
    server.arrived(seq)
    loops(server, [0.1] * 16)
    assert pool.free_tokens == 320 - 3 * 16  # of 17 + 16 tokens
    loops(server, [0.2] * 3)
    assert pool.free_tokens == 320


def test_a_prefill_server_that_has_rested_forms_batch_after_batch_again() -> None:
    rules = PrefillFirstRules(8, 8192, chunked_prefill_size=500)
    server = SendingPrefillScheduler(rules, RadixPool(2000), metadata_buffers=8)
    assert server.schedule(0.0) is None
    rows = [Sequence(index, 400, 1, 0.0) for index in range(2)]
    for seq in rows:
        server.add(seq)
        assert server.schedule(0.5) is None
    for seq in rows:
        server.reserved(seq)
    first, second = server.schedule(1.0), server.schedule(1.1)  # the second while the first runs
    assert first is not None
    assert second is not None
    for batch in (first, second):
        batch.t_end = 2.0
        server.settle(batch)
    server.sent(rows[0])
    assert server.schedule(3.0) is None
    assert list(server.inflight) == [rows[1]]


def staged_server(tokens: int = 20000, **knobs: float) -> StagedReservingScheduler:
    rules: dict[str, Any] = {"max_running_requests": 8, "pre_alloc_size": 8, "metadata_buffers": 8, "max_model_len": 8192}
    return StagedReservingScheduler(ReservingRules(**rules | knobs), RadixPool(tokens, prefix_caching=False), lanes=2)


def test_requests_go_on_one_round_after_a_micro_batch_has_noted_them() -> None:
    server = staged_server(handshake_s=0.0)
    first, second = Sequence(0, 600, 4, 0.0), Sequence(1, 600, 3, 0.0)
    server.add(first)
    assert server.schedule(1.0) is None  # both lanes have their turn: the first notes it, after the second's it has memory
    assert [note.seq for note in server.notes] == [first]
    server.arrived(first)
    assert server.schedule(2.0) is None
    assert server.waiting == [first]
    server.add(second)
    one = server.schedule(3.0)  # the first lane's: its row's first token came with it, as batch 0
    assert one is not None
    assert (one.number, one.decode_rows, first.first_scheduled_s) == (1, 1, 3.0)
    assert [note.seq for note in server.notes] == [first]  # it was noted in this turn, and waits for the other lane's
    assert server.schedule(3.1) is None  # that has none, and the first is in flight
    assert [note.seq for note in server.notes] == [first, second]
    server.arrived(second)
    server.settle(one)
    two = server.schedule(3.2)
    assert two is not None
    assert (two.number, two.decode_rows, list(server.running)) == (2, 1, [first])
    assert server.schedule(3.3) is None  # the other lane has noted that the prompt is here
    server.settle(two)
    three = server.schedule(3.4)  # so it waits for a row, and the lane whose turn is next has it: the first
    assert three is not None
    assert (three.number, three.decode_rows, list(server.running)) == (4, 2, [first, second])
    assert first.emissions == [0, 2, 4, 4]  # batch 3 is that of the other's first token


def test_a_lane_keeps_memory_back_for_its_own_rows_alone() -> None:
    """512 for the row of the lane that had its turn, none for that of the other: 1,400 - 512 hold no 600 + 512, 1,400 do."""
    for turn, admitted in ((0, []), (1, [7])):
        server = staged_server(2000, handshake_s=0.0)
        row = Sequence(0, 600, 50, 0.0)
        row.state, row.length, row.group_state = "running", 601, 650
        server.kv.free_tokens -= 600
        server._most = 650
        server._lanes[0].running[row] = None
        server._lanes[0].decodes.join(row)
        server.prealloc[Sequence(7, 600, 50, 0.0)] = 0.0
        for seq in server.prealloc:
            seq.group_state = 650
        server._lanes[1 - turn].noted_s = 1.0
        server._show(server._lanes[turn])
        server._let_go_on(server._lanes[1 - turn], 1.0)
        assert [note.seq.index for note in server.notes] == admitted
