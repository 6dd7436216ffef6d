"""Host memory behind the tree of blocks: worked cases, a plain statement of the engine's rules, conservation."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.hosted_tree import HostedTree
from engine_models.memory.radix import Content, content_of
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import FIRST_COME, GUARANTEED, UTILIZATION, TwoPassRules
from engine_models.schedulers.memory_then_tokens_tiered import HostCopies, TieredTwoPassScheduler
from tests.effort import examples
from tests.engine_models.test_memory_then_tokens import conserved, request

COPIES = HostCopies(token_bytes=1e6, ranks=2, bytes_per_s=1e9)  # a token takes 1 ms
SIZE = 4


def prompt(index: int, *runs: tuple[int, int, int]) -> Sequence:
    length = sum(run[2] for run in runs)
    return Sequence(index, length, 1, 0.0, runs=(*runs, (900 + index, 0, 1)), shareable_tokens=length, output_shared=True)


def serve(kv: HostedTree, seq: Sequence) -> int:
    """Take, compute and give back a prompt; the tokens found."""
    content = content_of(seq)
    found = kv.take(seq, content, seq.prompt_tokens)
    kv.store(seq, content, seq.prompt_tokens)
    kv.release(seq, content, seq.prompt_tokens)
    return found


def test_what_the_device_gives_up_changes_places_with_the_longest_free_of_the_host() -> None:
    """Four blocks of four tokens here, two there. A and B have two each, then C pushes A out, deepest first, and A comes back.

    C's two blocks put A2, then A1 there. A coming back holds both before anything moves, so that no place there is free when the
    first is brought for B2, which is lost; its own place is then B1's, and the second's is empty. D puts C there.
    """
    kv = HostedTree(4, SIZE, host_blocks=2)
    a, b, c, d = (prompt(index, (index, 0, 8)) for index in range(4))
    assert [serve(kv, seq) for seq in (a, b, c)] == [0, 0, 0]
    assert (kv.sent_tokens, kv.brought_tokens) == (8, 0)
    again = prompt(10, (0, 0, 8))
    assert serve(kv, again) == 7  # all but the last token: a block, and three tokens of the next one, which is taken over
    assert (kv.sent_tokens, kv.brought_tokens, kv.found_there) == (12, 8, 7)
    assert serve(kv, d) == 0
    assert (kv.sent_tokens, kv.host_free) == (20, 2)
    assert serve(kv, prompt(11, (1, 0, 8))) == 0  # of B nothing is found: without its first block the second hangs in the air


def test_before_claims_a_block_that_is_brought_can_push_out_the_next_one() -> None:
    """One host: A1 and A2 stand there, A2 as the longest; bringing A1 takes a block of B, whose place there is A2's."""
    found = {}
    for claims_first in (True, False):
        kv = HostedTree(2, SIZE, host_blocks=2, claims_first=claims_first)
        for seq in (prompt(0, (0, 0, 8)), prompt(1, (1, 0, 8))):
            serve(kv, seq)
        longer = prompt(2, (0, 0, 8), (2, 0, 0))
        found[claims_first] = serve(kv, longer)
    assert found == {True: 7, False: 4}


@pytest.mark.parametrize("turn", [1, -1])
def test_a_block_that_one_would_take_over_in_part_is_copied_where_another_of_the_step_holds_all_of_it(turn: int) -> None:
    kv = HostedTree(12, SIZE, host_blocks=4)
    serve(kv, prompt(0, (0, 0, 8)))
    in_part, whole = prompt(1, (0, 0, 6), (50, 0, 5)), prompt(2, (0, 0, 8), (60, 0, 5))
    pair = [in_part, whole][::turn]
    for _ in range(3):
        for seq in pair:
            kv.claim(seq, content_of(seq), seq.prompt_tokens)
        for seq in pair:
            kv.take(seq, content_of(seq), seq.prompt_tokens)
        held = {id(block) for seq in pair for block in seq.blocks if block}
        assert len(held) + sum(seq.blocks.count(None) for seq in pair) == 12 - kv.free_blocks
        for seq in pair:
            kv.release(seq, content_of(seq), seq.prompt_tokens)
        assert sum(block.many for block in kv._line) + kv._fresh == kv.free_blocks == 12


def test_a_step_waits_for_the_slower_of_its_copies() -> None:
    """A prompt of two blocks is brought back while two others go: 8 ms, not 16; its step alone is longer."""
    kv = HostedTree(4, SIZE, host_blocks=4)
    rules = TwoPassRules(max_batch_size=4, max_num_tokens=64, max_seq_len=16, overlap=False)
    scheduler = TieredTwoPassScheduler(rules, kv, host=COPIES)
    stalls = []
    for seq in (request(0, 8, 1, group=1, shared=8), request(1, 8, 1), request(2, 8, 1), request(3, 9, 1, group=1, shared=8)):
        scheduler.add(seq)
        batch = scheduler.schedule(0.0)
        assert batch is not None
        stalls.append(batch.stall_s)
        scheduler.settle(batch)
    assert stalls == pytest.approx([0.0, 0.0, 0.008, 0.012])  # three blocks go for the last one, two of them for what is brought
    (count,) = scheduler.tier_counts()
    assert (count.kind, count.hit_tokens, count.read_bytes, count.written_bytes) == ("host", 8, 8 * 2e6, 20 * 2e6)
    assert (scheduler.host_hit_tokens, scheduler.hit_tokens) == (8, 0)


class Plain:
    """The same rules block by block, as `getFreeBlock`, `onboardBlock` and `loadOrAllocateBlocks` state them."""

    def __init__(self, device: int, host: int) -> None:
        def fresh(*, here: bool) -> dict[str, Any]:
            return {"used": False, "key": None, "up": None, "below": {}, "refs": 0, "here": here}

        self.device = [fresh(here=True) for _ in range(device)]
        self.host = [fresh(here=False) for _ in range(host)]
        self.root: dict[str, Any] = {"below": {}}
        self.sent = self.brought = self.copied = 0

    def detach(self, block: dict[str, Any]) -> None:
        for child in list(block["below"].values()):
            self.detach(child)
        if block["up"] is not None:
            del block["up"]["below"][block["key"]]
            block["up"] = None

    def free(self) -> dict[str, Any]:
        block = self.device.pop(0)
        if block["used"] and self.host:
            other = self.host.pop(0)
            self.sent += 1
            block["here"], other["here"] = False, True
            self.host.append(block)
            block = other
        self.detach(block)
        block["used"] = True
        return block

    def bring(self, block: dict[str, Any]) -> None:
        if not block["here"]:
            other = self.free()
            self.brought += 1
            block["here"], other["here"] = True, False
            self.host.append(other)

    def take(self, tokens: tuple[int, ...]) -> tuple[list[dict[str, Any]], int]:
        held: list[dict[str, Any]] = []
        at, found, part = self.root, 0, None
        while found + SIZE <= len(tokens) - 1 and tokens[found : found + SIZE] in at["below"]:
            at = at["below"][tokens[found : found + SIZE]]
            self.hold(at)
            held.append(at)
            found += SIZE
        rest = tokens[found : min(found + SIZE, len(tokens) - 1)]
        best = 0
        exact = at["below"].get(rest)
        for key, child in [(rest, exact)] if exact else at["below"].items():
            same = next((i for i, (x, y) in enumerate(zip(key, rest, strict=False)) if x != y), min(len(key), len(rest)))
            if same > best:
                best, part = same, child
        takes = part is not None and not part["refs"] and not part["below"]
        self.copied += best if part is not None and not takes and not part["here"] else 0
        if part is not None and takes:
            self.hold(part)
        for block in held:
            self.bring(block)
        if part is not None:
            found += best
            if takes:
                self.detach(part)
                self.bring(part)
                held.append(part)
        while len(held) < -(-len(tokens) // SIZE):
            block = self.free()
            block["refs"] = 1
            held.append(block)
        return held, found

    def hold(self, block: dict[str, Any]) -> None:
        if not block["refs"]:
            line = self.device if block["here"] else self.host
            line[:] = [other for other in line if other is not block]
        block["refs"] += 1

    def end(self, held: list[dict[str, Any]], tokens: tuple[int, ...]) -> None:
        at, known = self.root, True
        for number, block in enumerate(held):
            key = tokens[number * SIZE : (number + 1) * SIZE]
            if known and key in at["below"]:
                at = at["below"][key]
                continue
            known = False
            if block["up"] is not None:
                del block["up"]["below"][block["key"]]
            block["key"], block["up"] = key, at
            at["below"][key] = at = block
        for block in reversed(held):
            block["refs"] -= 1
            if not block["refs"]:
                self.device.append(block)


@pytest.mark.parametrize("seed", range(60))
def test_a_plain_statement_of_the_rules_finds_and_copies_the_same(seed: int) -> None:
    rng = Random(seed)
    device, host = rng.randint(6, 20), rng.randint(1, 12)
    kv, plain = HostedTree(device, SIZE, host_blocks=host), Plain(device, host)
    running: list[tuple[Sequence, Content, tuple[int, ...], list[dict[str, Any]]]] = []
    for index in range(200):
        while running and (rng.random() < 0.5 or kv.free_blocks < 6):
            seq, content, tokens, held = running.pop(rng.randrange(len(running)))
            kv.release(seq, content, len(tokens))
            plain.end(held, tokens)
        base, shared, own = rng.randint(0, 3), rng.randint(0, 14), rng.randint(1, 10)
        seq = prompt(index, (base, 0, shared), (100 + index, 0, own))
        content = content_of(seq)
        tokens = tuple([base * 1000 + at for at in range(shared)] + [10**6 + index * 100 + at for at in range(own)])
        found = kv.take(seq, content, len(tokens))
        held, plainly = plain.take(tokens)
        assert (index, found) == (index, plainly)
        assert (kv.free_blocks, kv.host_free) == (len(plain.device), len(plain.host))
        assert (kv.sent_tokens, kv.brought_tokens) == (plain.sent * SIZE, plain.brought * SIZE + plain.copied)
        running.append((seq, content, tokens, held))
    assert plain.brought > 0


CASE = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([GUARANTEED, UTILIZATION]),
        "chunking": st.sampled_from([None, FIRST_COME]),
        "overlap": st.booleans(),
        "blocks": st.integers(14, 40),
        "host": st.integers(1, 30),
        "claims": st.booleans(),
        "partial": st.booleans(),
        "requests": st.lists(
            st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 20), st.integers(0, 30)),
            min_size=1,
            max_size=14,
        ),
    }
)


@settings(max_examples=examples(150))
@given(CASE)
def test_blocks_are_conserved_here_and_there_and_all_answers_end(case: dict[str, Any]) -> None:
    rules = TwoPassRules(8, 64, 54, case["policy"], case["chunking"], overlap=case["overlap"])
    kv = HostedTree(
        case["blocks"], SIZE, host_blocks=case["host"], claims_first=case["claims"], partial=case["partial"],
        returns=case["policy"] == UTILIZATION,
    )
    scheduler = TieredTwoPassScheduler(replace(rules), kv, host=COPIES)
    coming = sorted(
        (at, index, request(index, prompt, output, group=group, shared=min(shared, prompt - 1)))
        for index, (prompt, output, group, shared, at) in enumerate(case["requests"])
    )
    made, waited_s, flight = [seq for _, _, seq in coming], 0.0, []
    while scheduler.has_work() or coming:
        while coming and (coming[0][0] <= scheduler.next_number or not scheduler.has_work()):
            scheduler.add(coming.pop(0)[2])
        batch = scheduler.schedule(0.0)
        conserved(scheduler)
        assert kv.host_free == kv._host_fresh + sum(block.many for block in kv._host_line) == kv.host_blocks
        assert all(block.away and not block.refs for block in kv._host_line)
        assert not any(block.away for block in kv._line)
        if batch is not None and batch.tokens:
            waited_s += batch.stall_s
            flight.append(batch)
        elif batch is not None and batch.preempted:
            continue
        if flight and (batch is None or len(flight) == 1 + case["overlap"]):
            scheduler.settle(flight.pop(0))
    for batch in flight:
        scheduler.settle(batch)
    assert kv.free_blocks == kv.capacity_blocks
    assert all(seq.state == "finished" for seq in made)
    copied = max(kv.sent_tokens, kv.brought_tokens)
    assert copied * 1e-3 - 1e-9 <= waited_s <= (kv.sent_tokens + kv.brought_tokens) * 1e-3 + 1e-9
