"""A prefill server that holds what it computed, and a decode server that reads it."""

from __future__ import annotations

from typing import Any

from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull

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
