"""A radix tree over device and host, and the store behind it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from engine_models.memory.radix import Content, Node
from engine_models.memory.tiered_radix import FurtherTier, TieredPool, TieredTree, TokenStore
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import Link
from engine_models.schedulers.prefill_first import PrefillFirstRules
from engine_models.schedulers.prefill_first_tiered import Prefetch, TieredPrefillFirstScheduler
from simulator import load_scenario
from simulator.prepare import prepare
from tests.guard.cases import CHATS, given

Write = Literal["through", "back", "selective"]


def pool(tokens: int = 100, host: int = 1000, write: Write = "through", further: FurtherTier | None = None) -> TieredPool:
    tree = TieredTree(1, "lru", host_tokens=host, write=write, further=further)
    return TieredPool(tokens, 1, tree, Link(1e6), 1000.0)


def content(*runs: tuple[int, int, int]) -> Content:
    return Content(runs)


def enter(kv: TieredPool, what: Content) -> None:
    """As a request does that computes all of it and ends at once."""
    assert kv.make_room(what.length)
    kv.free_tokens -= what.length
    known, _ = kv.tree.insert(what, what.length)
    kv.free_tokens += known


def found(kv: TieredPool, what: Content) -> tuple[int, int]:
    position, node = kv.tree.match(what, what.length)
    return position, sum(each.length for each in kv.tree.below(what, what.length, node, position))


def check(kv: TieredPool) -> None:
    """The books agree with the tree."""
    nodes = kv.tree.nodes()
    assert kv.free_tokens + sum(node.length for node in nodes if not node.away) == kv.capacity_tokens
    assert kv.tree.evictable_tokens == sum(node.length for node in nodes if not node.away and not node.lock)
    assert kv.tree.host_used == sum(node.length for node in nodes if node.backed) <= kv.tree.host_tokens
    for node in [*nodes, kv.tree.root]:
        assert node.resident == sum(not child.away for child in node.children.values())
        assert not node.away or (node.backed and all(child.away for child in node.children.values()))


def test_what_leaves_the_device_stays_in_the_host_and_comes_back() -> None:
    kv = pool()
    first, second = content((1, 0, 60)), content((2, 0, 80))
    enter(kv, first)
    enter(kv, second)
    assert found(kv, first) == (0, 60)
    _, node = kv.tree.match(first, 60)
    kv.tree.lock(node)
    assert kv.load(kv.tree.below(first, 60, node, 0))
    assert found(kv, first) == (60, 0)
    assert found(kv, second) == (0, 80)
    check(kv)
    assert kv.copy_s(60, 1) == pytest.approx(60 * 1000 / 1e6)
    assert kv.counts(2)[0].read_bytes == 60 * 1000 * 2


def test_a_request_that_computes_what_is_away_puts_it_on_the_device_again() -> None:
    kv = pool()
    enter(kv, content((1, 0, 60)))
    enter(kv, content((2, 0, 80)))
    enter(kv, content((1, 0, 70)))
    assert found(kv, content((1, 0, 70))) == (70, 0)
    check(kv)


def test_the_write_policy() -> None:
    for write, after_one, after_two in (("through", 60, 60), ("selective", 0, 60), ("back", 0, 0)):
        kv = pool(tokens=150, write=write)  # type: ignore[arg-type]
        enter(kv, content((1, 0, 60)))
        assert kv.tree.host_used == after_one
        enter(kv, content((1, 0, 60)))
        assert kv.tree.host_used == after_two
        enter(kv, content((2, 0, 140)))
        assert found(kv, content((1, 0, 60))) == (0, 60)
        check(kv)


def test_a_full_host_gives_up_what_was_used_least_and_never_what_the_device_has() -> None:
    kv = pool(tokens=100, host=120)
    for number in range(1, 4):
        enter(kv, content((number, 0, 50)))
    assert [found(kv, content((number, 0, 50))) for number in range(1, 4)] == [(0, 0), (50, 0), (50, 0)]
    check(kv)


def test_a_full_host_first_gives_up_copies_of_what_the_device_has_where_it_is_written_back() -> None:
    kv = pool(tokens=100, host=110, write="back")
    for number in range(1, 4):
        enter(kv, content((number, 0, 50)))
    first, second = content((1, 0, 50)), content((2, 0, 50))
    assert (found(kv, first), kv.tree.host_used) == ((0, 50), 50)
    _, node = kv.tree.match(first, 50)
    kv.tree.lock(node)
    assert kv.load(kv.tree.below(first, 50, node, 0))  # the second goes to the host
    kv.tree.unlock(node)
    assert (found(kv, first), found(kv, second), kv.tree.host_used) == ((50, 0), (0, 50), 100)
    # the third is pushed out: a copy that is being loaded stays, what the host alone has goes
    assert kv.make_room(50)
    assert (found(kv, second), kv.tree.host_used) == ((0, 0), 100)
    kv.tree.loads_ended()
    enter(kv, content((4, 0, 50)))
    _, node = kv.tree.match(first, 50)
    kv.tree.lock(node)  # in use, so that the fourth is pushed out
    assert kv.make_room(50)
    assert [found(kv, content((number, 0, 50))) for number in (1, 3, 4)] == [(50, 0), (0, 50), (0, 50)]
    check(kv)


def test_a_full_host_gives_up_by_the_policy_of_the_device() -> None:
    for policy, kept in (("lru", [0, 0, 50]), ("filo", [50, 0, 0]), ("lfu", [50, 0, 0])):
        kv = TieredPool(60, 1, TieredTree(1, policy, host_tokens=110), Link(1e6), 1000.0)
        for number in (1, 1, 2, 3):
            enter(kv, content((number, 0, 50)))
        # all but the third are away; the fourth needs the place of one of them
        enter(kv, content((4, 0, 55)))
        assert [found(kv, content((number, 0, 50)))[1] for number in (1, 2, 3)] == kept, policy
        check(kv)


def test_a_prompt_for_which_a_step_has_no_tokens_left_is_not_loaded() -> None:
    rules = PrefillFirstRules(8, 512, max_prefill_tokens=80, chunked_prefill_size=None)
    scheduler = TieredPrefillFirstScheduler(rules, pool(tokens=400), prefetch=Prefetch())
    first = Sequence(0, 100, 2, 0.0, runs=((1, 0, 100),), shareable_tokens=100)
    scheduler.add(first)
    while scheduler.has_work():
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.settle(batch)
    kv = scheduler.kv
    assert kv.make_room(400)
    assert found(kv, content((1, 0, 100))) == (0, 100)
    scheduler.add(Sequence(1, 64, 2, 0.0, runs=((2, 0, 64),), shareable_tokens=64))
    scheduler.add(Sequence(2, 120, 2, 0.0, runs=((1, 0, 100), (3, 0, 20)), shareable_tokens=120))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert (batch.tokens, kv.read_tokens) == (64, 0)
    scheduler.settle(batch)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert (batch.tokens, kv.read_tokens) == (20, 100)


def test_what_is_written_to_a_store_is_found_there_when_the_copy_has_ended() -> None:
    store = TokenStore(100, 1)
    tier = FurtherTier("shared", store, 1000.0, [Link(1e6)], [Link(1e6)])
    tier.write(content((1, 0, 60)), 60, now_s=1.0)
    assert store.find(content((1, 0, 60)), 60, now_s=1.05) == 0
    assert store.find(content((1, 0, 60)), 60, now_s=1.06) == 60
    tier.write(content((2, 0, 60)), 60, now_s=2.0)
    assert store.find(content((2, 0, 60)), 60, now_s=3.0) == 60
    assert store.find(content((1, 0, 60)), 60, now_s=3.0) == 0  # no room for both
    assert tier.written_bytes == 120_000


def test_stores_of_one_room_push_out_by_their_bytes_what_was_used_first() -> None:
    first, second = TokenStore(100, 1, 10.0), TokenStore(0, 1, 5.0)
    second.beside(first)
    first.put(content((1, 0, 60)), 60, 0.0)
    second.put(content((1, 0, 80)), 80, 0.0)
    assert [store.find(content((1, 0, 80)), 80, 1.0) for store in (first, second)] == [60, 80]
    assert first.find(content((1, 0, 60)), 60, 1.0) == 60  # used last: 1,000 bytes hold it beside the other
    second.put(content((2, 0, 30)), 30, 2.0)
    assert second.find(content((2, 0, 30)), 30, 2.0) == 30
    assert [store.find(content((1, 0, 80)), 80, 3.0) for store in (first, second)] == [60, 0]


@pytest.mark.parametrize("seed", range(6))
def test_the_books_agree_whatever_happens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    write: Write = ("through", "selective", "back")[seed % 3]  # type: ignore[assignment]
    kv = pool(tokens=300, host=int(rng.integers(200, 900)), write=write)
    held: list[Node] = []
    for step in range(300):
        what = content((int(rng.integers(3)), 0, int(rng.integers(1, 60))), (100 + step % 40, 0, int(rng.integers(1, 40))))
        position, node = kv.tree.match(what, what.length)
        kv.tree.lock(node)
        below = kv.tree.below(what, what.length, node, position)
        if below and rng.random() < 0.6 and kv.load(below):
            kv.tree.unlock(node)
            node = below[-1]
            kv.tree.lock(node)
            position += sum(each.length for each in below)
        if kv.make_room(what.length - position):
            kv.free_tokens -= what.length - position
            known, end = kv.tree.insert(what, what.length)
            kv.free_tokens += known - position
            if rng.random() < 0.3:
                kv.tree.lock(end)
                held.append(end)
        kv.tree.unlock(node)
        if rng.random() < 0.5:
            kv.tree.loads_ended()
        if held and rng.random() < 0.4:
            kv.tree.unlock(held.pop(int(rng.integers(len(held)))))
        check(kv)


def test_what_only_the_end_of_a_prefix_has_comes_with_every_load() -> None:
    """States and windows: 500 bytes a load beside 1,000 a token, over 1 MB/s."""
    kv = TieredPool(100, 1, TieredTree(1, "lru", host_tokens=1000), Link(1e6), 1000.0, 500.0)
    first = content((1, 0, 60))
    enter(kv, first)
    enter(kv, content((2, 0, 80)))
    _, node = kv.tree.match(first, 60)
    kv.tree.lock(node)
    assert kv.load(kv.tree.below(first, 60, node, 0))
    assert kv.copy_s(60, 1) == pytest.approx(0.0605)
    (host,) = kv.counts(2)
    assert host.read_bytes == 2 * 60_500
    tier = FurtherTier("shared", TokenStore(1000, 1), 1000.0, [Link(1e6)], [Link(1e6)], 500.0)
    assert tier.read(10, 1.0) == pytest.approx(1.0105)
    tier.write(first, 60, 2.0)
    assert (tier.read_bytes, tier.written_bytes) == (10_500, 60_500)


@pytest.mark.parametrize(
    ("model", "pooled"), [("openai/gpt-oss-20b", True), ("google/gemma-3-4b-it", False), ("mistralai/Mistral-7B-v0.1", False)]
)
def test_layers_with_windows_keep_all_tokens_where_they_have_no_pool_of_their_own(model: str, pooled: bool) -> None:
    """`is_hybrid_swa_model`: gpt-oss has one; of the others all that a token has comes back, though each of Mistral's slides."""
    tiers = [{"kind": "host", "bytes": 5e9}, {"kind": "nvme", "bytes": 5e10, "bytes_per_s": 5e9}]
    found = prepare(load_scenario(given({"engine": "sglang", "kv_tiers": tiers}, CHATS, model)))
    scheduler = found.plan.scheduler("step")
    assert isinstance(scheduler, TieredPrefillFirstScheduler)
    further = scheduler.kv.tree.further
    assert further is not None
    assert (further.end_bytes > 0) == (further.token_bytes < found.plan.memory.kv_bytes_per_token) == pooled
    assert (scheduler.kv.copy_s(0, 1) > 0) == pooled
