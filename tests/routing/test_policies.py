"""Routing policies: their rules on small cases, and their indexes against plain counting."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.cluster.routing.breakers import BreakerRules, Breakers
from simulator.cluster.routing.hashing import FacebookRing, Md5Ring
from simulator.cluster.routing.ideal import RULES
from simulator.cluster.routing.kv_index import KvIndex, LiveBlocks
from simulator.cluster.routing.policy import Arrival, Loads, Policy, PowerOfTwo
from simulator.cluster.routing.prefix_tree import PrefixTree
from simulator.cluster.routing.systems import MODULES, system_named
from tests.effort import examples

WORKERS = 4


def of(name: str, policy: str | None = None, workers: int = WORKERS, **flags: object) -> Policy:
    """A policy of a product."""
    system = system_named(name)
    assert system is not None
    given = flags | ({system.policy_flag: policy} if policy else {})
    names = [f"http://w{i}:8000" for i in range(workers)]
    return system.policy(system.read(given, "router"), workers, Random(0), names)


def derived(kind: type) -> list[type]:
    return [kind, *(below for child in kind.__subclasses__() for below in derived(child))]


def test_what_a_policy_wants_to_hear_is_said_when_it_is_made() -> None:
    """A class attribute of a policy would not be seen by a compiled router."""
    said = {"reads_text", "reads_key", "hears_ends", "hears_first_tokens", "polls_s", "reads_adapters", "counts"}
    for product in MODULES:
        system_named(product)
    kinds = derived(Policy)
    assert len(kinds) > 15
    for kind in kinds:  # a compiled class has descriptors of its own
        assert not said & {name for name, value in vars(kind).items() if not hasattr(value, "__get__")}, kind


def text(index: int, *runs: tuple[int, int, int], key: str | None = None) -> Arrival:
    return Arrival(index, sum(run[2] for run in runs), runs, key)


def send(policy: Policy, arrival: Arrival, worker: int | None = None, now_s: float = 0.0) -> int:
    policy.tick(now_s)
    chosen = policy.choose(arrival, now_s) if worker is None else worker
    assert worker is not None or chosen in policy.allowed(arrival, now_s)
    policy.sent(arrival, chosen, now_s)
    return chosen


EVERY = [
    *[("sglang-router", p) for p in ("random", "round_robin", "cache_aware", "power_of_two", "manual")],
    *[
        ("vllm-router", p)
        for p in (
            "random",
            "round_robin",
            "cache_aware",
            "power_of_two",
            "consistent_hash",
            "sticky_least_loaded",
        )
    ],
    *[("production-stack", p) for p in ("roundrobin", "session", "prefixaware")],
    ("dynamo", "kv"),
]


@pytest.mark.parametrize(("system", "name"), EVERY)
def test_a_choice_is_allowed_and_those_that_are_down_are_not_chosen(system: str, name: str) -> None:
    policy, draw, live = of(system, name), Random(1), list[tuple[Arrival, int]]()
    for index in range(300):
        if index == 150:
            policy.set_up([0, 2])
        prefix = draw.randrange(3)
        arrival = text(
            index, (prefix, 0, 200), (100 + index, 0, draw.randrange(1, 90)), key=f"s{draw.randrange(9)}"
        )
        arrival.blocks, arrival.private_blocks = [prefix * 10 + i for i in range(1, 7)], 2
        chosen = send(policy, arrival, now_s=0.1 * index)
        assert index < 150 or chosen in (0, 2)
        live.append((arrival, chosen))
        while len(live) > 12:
            done, worker = live.pop(draw.randrange(len(live)))
            policy.first_token(done, worker, 0.1 * index)
            policy.ended(done, worker, 0.1 * index)


@pytest.mark.parametrize("name", RULES)
def test_ideal_rules_choose_whom_they_allow(name: str) -> None:
    policy = RULES[name](WORKERS, Random(0))
    assert len({send(policy, text(i, (i, 0, 10))) for i in range(40)}) == WORKERS


def test_a_session_stays_where_it_began() -> None:
    policy = RULES["session"](WORKERS, Random(0))
    assert [send(policy, text(i, (0, 0, 1), key=f"s{i % 3}")) for i in range(9)] == [0, 1, 2] * 3
    policy.set_up([1, 2, 3])
    assert send(policy, text(9, (0, 0, 1), key="s0")) == 3
    policy.set_up([0, 1, 2, 3])
    assert send(policy, text(10, (0, 0, 1), key="s0")) == 3


def test_least_tokens_looks_at_prompts_in_flight() -> None:
    policy = RULES["least_tokens"](2, Random(0))
    long, short = text(0, (0, 0, 100)), text(1, (1, 0, 10))
    assert [send(policy, long), send(policy, short), send(policy, text(2, (2, 0, 10)))] == [0, 1, 1]
    policy.ended(long, 0, 1.0)
    assert send(policy, text(3, (3, 0, 10))) == 0


def test_power_of_two_never_takes_the_most_loaded() -> None:
    policy = PowerOfTwo(3, Random(0))
    policy.loads.add(1, 1)
    assert policy.allowed(text(0), 0.0) == [0, 2]
    drawn = Counter(policy.choose(text(0), 0.0) for _ in range(3000))
    assert set(drawn) == {0, 2}
    assert 1300 < drawn[0] < 1700


def test_polled_loads_replace_the_count_and_do_not_see_what_is_sent() -> None:
    policy = of("sglang-router", "power_of_two", 2)
    policy.polled = [50.0, 40.0]  # type: ignore[attr-defined]
    assert [send(policy, text(i, (i, 0, 10))) for i in range(20)] == [1] * 20


def test_cache_aware_follows_the_text_until_loads_are_uneven() -> None:
    policy = of("sglang-router", "cache_aware", balance_abs_threshold=2, balance_rel_threshold=1.5)
    first = text(0, (1, 0, 100), (50, 0, 10))
    assert send(policy, first) == 0
    assert send(policy, text(1, (1, 0, 100), (51, 0, 20))) == 0
    assert send(policy, text(2, (1, 0, 20), (52, 0, 100))) == 1  # a fifth of it matches: too little
    assert send(policy, text(3, (1, 0, 100), (53, 0, 20))) == 0
    assert send(policy, text(4, (1, 0, 100), (54, 0, 20))) == 2  # three more than the least loaded
    policy.ended(first, 0, 1.0)
    assert (
        send(policy, text(5, (1, 0, 100), (55, 0, 20))) == 0
    )  # the maker of the node, though 2 has the text too


def test_vllms_router_takes_the_least_loaded_of_a_node() -> None:
    policy = of("vllm-router", "cache_aware")
    for index, worker in enumerate((0, 0, 2)):
        send(policy, text(index, (1, 0, 100), (50 + index, 0, 9)), worker)
    assert policy.allowed(text(3, (1, 0, 100), (60, 0, 9)), 0.0) == [2]


def test_vllms_router_cuts_its_tree_by_eight_characters_a_token() -> None:
    policy = of("vllm-router", "cache_aware", max_tree_size=1000, eviction_interval_secs=10)
    for index in range(2):
        send(policy, text(index, (index, 0, 100)), 1)
    policy.tick(10.0)
    assert [policy.allowed(text(9, (segment, 0, 100)), 10.0) for segment in (0, 1)] == [(0,), [1]]


def test_sglangs_router_forgets_who_is_out_when_a_text_asks_for_it() -> None:
    policy = of("sglang-router", "cache_aware")
    for index in range(2):
        send(policy, text(index, (index, 0, 100)), 2)
    policy.set_up([0, 1, 3])
    assert send(policy, text(2, (0, 0, 100))) == 0
    policy.set_up(range(WORKERS))
    assert [policy.allowed(text(3, (segment, 0, 100)), 0.0) for segment in (0, 1)] == [(1,), (1,)]


def test_vllms_ring_is_of_those_that_are_up_and_by_header_and_session() -> None:
    policy = of("vllm-router", "consistent_hash")
    names = [f"http://w{worker}:8000" for worker in range(WORKERS)]
    key = "header:x-session-id:s7"
    home = FacebookRing(names, 160).worker(key)
    rest = [worker for worker in range(WORKERS) if worker != home]
    asked = text(0, (0, 0, 5), key="s7")
    assert policy.allowed(asked, 0.0) == (home,)
    policy.set_up(rest)
    assert policy.allowed(asked, 0.0) == (rest[FacebookRing([names[worker] for worker in rest], 160).worker(key)],)
    policy.set_up(range(WORKERS))
    by_user = Arrival(1, 5, (), "s7", "x-user-id")
    assert policy.allowed(by_user, 0.0) == (FacebookRing(names, 160).worker("header:x-user-id:s7"),)


def test_the_stack_takes_turns_by_name() -> None:
    policy = of("production-stack", "roundrobin", workers=11)
    assert [send(policy, text(turn, (0, 0, 5))) for turn in range(4)] == [0, 10, 1, 2]


def test_power_of_two_before_vllms_pairs_is_a_draw() -> None:
    system = system_named("vllm-router")
    assert system is not None
    assert system.paired is not None
    policy = system.paired("power_of_two", system.read({}, "router"), 3, Random(0), None)
    send(policy, text(0, (0, 0, 5)), 1)
    assert list(policy.allowed(text(1, (1, 0, 5)), 0.0)) == [0, 1, 2]


def test_a_text_that_was_cut_from_the_tree_is_not_found() -> None:
    policy = of("sglang-router", "cache_aware", max_tree_size=250, eviction_interval_secs=10)
    for index in range(3):
        send(policy, text(index, (index, 0, 100)), 0, now_s=float(index))
    policy.loads.add(0, -3)  # type: ignore[attr-defined]
    policy.tick(9.0)
    assert policy.tree.match(((0, 0, 100),))[0] == 100  # type: ignore[attr-defined]
    policy.tick(10.0)
    assert [policy.tree.match(((i, 0, 100),))[0] for i in range(3)] == [0, 100, 100]  # type: ignore[attr-defined]


def test_manual_has_a_second_home() -> None:
    policy = of("sglang-router", "manual", assignment_mode="min_load")
    home = send(policy, text(0, (0, 0, 1), key="a"))
    policy.set_up([w for w in range(WORKERS) if w != home])
    other = send(policy, text(1, (0, 0, 1), key="a"))
    policy.set_up(range(WORKERS))
    assert other != home
    assert send(policy, text(2, (0, 0, 1), key="a")) == home


def test_sticky_sessions_are_spread_by_sessions_and_forgotten() -> None:
    policy = of("vllm-router", "sticky_least_loaded")
    homes = [send(policy, text(i, (0, 0, 1), key=f"s{i}")) for i in range(8)]
    assert Counter(homes) == dict.fromkeys(range(WORKERS), 2)
    assert [send(policy, text(8 + i, (0, 0, 1), key=f"s{i}")) for i in range(8)] == homes
    policy.tick(7300.0)
    assert len(policy.allowed(text(99, (0, 0, 1)), 7300.0)) == 1  # a hash breaks the tie
    assert policy._live == [0] * WORKERS  # type: ignore[attr-defined]


@pytest.mark.parametrize("ring", [Md5Ring, lambda names: FacebookRing(names, 160)])
def test_a_ring_moves_only_the_keys_of_a_worker_that_goes(ring: type[Md5Ring]) -> None:
    names = [f"http://w{i}:8000" for i in range(5)]
    keys = [f"user{i}" for i in range(2000)]
    whole, without = ring(names), ring(names[:4])
    before = [names[whole.worker(key)] for key in keys]
    after = [names[without.worker(key)] for key in keys]
    assert all(x == y for x, y in zip(before, after, strict=True) if x != names[4])
    assert min(Counter(before).values()) > 200


def test_breakers_open_on_failures_in_a_row_and_half_open_after_a_while() -> None:
    breakers = Breakers(2, BreakerRules(failures=3, successes=2, out_s=60.0))
    for success in (False, False, True, False, False):
        assert not breakers.note(1, 0.0, success=success)
    assert breakers.note(1, 1.0, success=False)
    assert breakers.up() == [0]
    assert not breakers.back(60.9)
    assert breakers.back(61.0)
    assert breakers.up() == [0, 1]
    assert breakers.note(1, 61.0, success=False)  # half open: one failure is enough
    assert breakers.up() == [0]


@pytest.mark.parametrize(
    ("system", "flags", "said"),
    [
        ("sglang-router", {"cache_treshold": 0.5}, "cache_threshold"),
        ("sglang-router", {"policy": "bucket"}, "random, round_robin"),
        ("vllm-router", {"balance_abs_threshold": 1.5}, "whole number"),
        ("dynamo", {"router_temperature": -1.0}, "out of range"),
        ("vllm-router", {"balance_rel_threshold": 0.5}, "out of range"),
        ("vllm-router", {"retry_max_retries": 0}, "out of range"),
        ("dynamo", {"use_kv_events": 1}, "true or false"),
        ("production-stack", {"routing_logic": "kvaware"}, "roundrobin"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_words(system: str, flags: dict[str, object], said: str) -> None:
    found = system_named(system)
    assert found is not None
    with pytest.raises(InputError) as error:
        found.read(flags, "deployment.router")
    assert said in f"{error.value.message} {error.value.mend}"


def test_every_product_declares_itself() -> None:
    assert [system_named(name) is not None for name in MODULES] == [True] * len(MODULES)
    assert system_named("no-router") is None


# -- indexes against plain counting --------------------------------------------------------------------------

paths = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def named(path: list[int]) -> list[int]:
    """Names of the blocks of a path: equal exactly where all before is equal."""
    return [hash(tuple(path[: i + 1])) for i in range(len(path))]


@settings(max_examples=examples(150))
@given(st.lists(st.tuples(st.integers(0, 2), paths), max_size=12), st.data())
def test_the_index_finds_what_workers_hold(stores: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    """Stored paths, whose ends are removed last block first, as engines do."""
    index, held = KvIndex(3), [set[int]() for _ in range(3)]
    for worker, path in stores:
        blocks = named(path)
        have = next((i for i, block in enumerate(blocks) if block not in held[worker]), len(blocks))
        index.store(worker, blocks[have - 1] if have else None, blocks[have:])
        held[worker] |= set(blocks)
        if data.draw(st.booleans()):
            kept = data.draw(st.integers(0, len(blocks)))
            behind = [b for w, p in stores if w == worker for b in named(p) if b in held[worker]]
            gone = [
                block
                for other in (named(p) for w, p in stores if w == worker)
                if other[: kept + 1] == blocks[: kept + 1]
                for block in reversed(other[kept:])
                if block in behind
            ]
            index.remove(worker, list(dict.fromkeys(gone)))
            held[worker] -= set(gone)
    for path in data.draw(st.lists(paths, min_size=1, max_size=5)):
        blocks = named(path)
        expected = [
            next((i for i, b in enumerate(blocks) if b not in held[w]), len(blocks)) for w in range(3)
        ]
        assert index.leading(blocks).tolist() == expected


@settings(max_examples=examples(150))
@given(st.lists(st.tuples(st.integers(0, 2), paths), max_size=12), st.randoms(use_true_random=False))
def test_live_blocks_count_once(requests: list[tuple[int, list[int]]], draw: Random) -> None:
    live, entered = LiveBlocks(3), []
    for worker, path in requests:
        entered.append((worker, named(path), live.enter(worker, named(path))))
    draw.shuffle(entered)
    while True:
        for worker in range(3):
            blocks = {block for of_, path, _ in entered if of_ == worker for block in path}
            assert live.total[worker] == len(blocks)
        for _, path, _ in entered:
            assert live.leading(path).tolist() == [
                next(
                    (i for i, b in enumerate(path) if not any(b in p for o, p, _ in entered if o == w)),
                    len(path),
                )
                for w in range(3)
            ]
        if not entered:
            break
        worker, _, tail = entered.pop()
        live.leave(worker, tail)


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 1), max_size=7)), max_size=10), paths)
def test_the_tree_matches_the_longest_prefix(inserted: list[tuple[int, list[int]]], asked: list[int]) -> None:
    tree = PrefixTree()

    def runs(letters: list[int]) -> tuple[tuple[int, int, int], ...]:
        return tuple((letter, 0, 1) for letter in letters)

    for worker, letters in inserted:
        tree.insert(runs(letters), worker)
    prefixes = [
        {tuple(t[: i + 1]) for w, t in inserted if w == of_ for i in range(len(t))} for of_ in range(2)
    ]
    known = prefixes[0] | prefixes[1]
    longest = max((i for i in range(1, len(asked) + 1) if tuple(asked[:i]) in known), default=0)
    assert tree.match(runs(asked))[0] == longest
    assert [tree.size.get(worker, 0) for worker in range(2)] == [len(of_) for of_ in prefixes]
    tree.forget(0)
    longest = max((i for i in range(1, len(asked) + 1) if tuple(asked[:i]) in prefixes[1]), default=0)
    assert tree.match(runs(asked))[0] == longest
    tree.evict(0)
    assert tree.match(runs(asked))[0] == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_loads_know_the_least_and_the_most(changes: list[tuple[int, bool]]) -> None:
    loads, plain = Loads(WORKERS), [0] * WORKERS
    for at, (worker, more) in enumerate(changes):
        by = 1 if more or not plain[worker] else -1
        loads.add(worker, by)
        plain[worker] += by
        assert (loads.first(), loads.least(), loads.most()) == (
            plain.index(min(plain)),
            min(plain),
            max(plain),
        )
        if at == 30:
            loads.count([1, 3])
            assert (loads.least(), loads.most()) == (min(plain[1], plain[3]), max(plain[1], plain[3]))
            loads.count(range(WORKERS))
