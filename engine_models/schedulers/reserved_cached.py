"""A decode server of `reserved` with a tree of prefixes: of a prompt only what it lacks is sent.

When memory is given to a request the tree is asked for its prompt, whole pages, up to all of it; what is found is locked, and
the prefill server sends the rest. What the tree keeps and nobody has locked counts as free. A prompt enters the tree when its
row joins the running batch, an answer when it ends; a row that loses its memory leaves there what had entered.

Source: `pop_preallocated`, `_match_prefix_and_lock` and `_allocatable_token_budgets` in `disaggregation/decode.py` of SGLang
(public copies, read 2026-11), compared loop by loop with drawn recordings of 0.5.23. A resumed row enters what it had got by
then, and one whose client has gone what it has (inferences: both as in a normal server).
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Any

from engine_models.memory.radix import Content, Node, content_of
from engine_models.parts.kept import Kept
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved import ReservingDecodeScheduler


@dataclass
class _Prefix:
    """What the tree has of a request: its content, the last node, locked, and the tokens up to there."""

    content: Content
    node: Node
    tokens: int


class CachedReservingScheduler(ReservingDecodeScheduler):
    """`ReservingDecodeScheduler` over a pool with a tree. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prefixes: dict[Sequence, _Prefix] = {}  # of those that hold memory

    def cached(self) -> list[Kept] | None:
        """As of the base."""
        return self.kv.tree.kept()

    def warm(self, pieces: Series[Kept]) -> None:
        """As of the base."""
        self.kv.warm(pieces)

    # -- memory ---------------------------------------------------------------------------------------------

    def _free_tokens(self) -> int:
        return self.kv.free_tokens + self.kv.tree.evictable_tokens

    def _take(self, tokens: int) -> None:
        if not self.kv.make_room(tokens):
            raise RuntimeError("out of KV memory that was counted as free")
        self.kv.free_tokens -= tokens

    def _make_room(self, tokens: int) -> None:
        self.kv.make_room(tokens)

    def _find(self, seq: Sequence) -> int:
        tree, content = self.kv.tree, content_of(seq)
        known, node = tree.match(content, seq.prompt_tokens)
        tree.lock(node)
        self._prefixes[seq] = _Prefix(content, node, known)
        return known

    def _hold(self, seq: Sequence) -> None:
        prefix = self._prefixes.get(seq)
        if prefix is None:  # it had lost its memory
            prefix = self._prefixes[seq] = _Prefix(content_of(seq), self.kv.tree.root, 0)
        tree, tokens = self.kv.tree, seq.length - 1
        tokens -= tokens % self.kv.page_tokens
        node = self._enter(seq, prefix, tokens)
        tree.unlock(prefix.node)
        tree.lock(node)
        prefix.node, prefix.tokens = node, tokens

    def _drop(self, seq: Sequence, held_tokens: int) -> None:
        prefix = self._prefixes.pop(seq, None)
        if prefix is not None:
            self.kv.tree.unlock(prefix.node)
            held_tokens -= prefix.tokens
        self.kv.free_tokens += held_tokens

    def _hand_over(self, seq: Sequence) -> None:
        self._leave_to_tree(seq, self._held_tokens(seq))

    def _hand_over_ended(self, seq: Sequence) -> None:
        self._leave_to_tree(seq, self.kv.paged(seq.length - 1))

    def _leave_to_tree(self, seq: Sequence, held_tokens: int) -> None:
        """Enter all that a request has, and let go of it."""
        tokens = seq.length - 1
        tokens -= tokens % self.kv.page_tokens
        prefix = self._prefixes[seq]
        self._enter(seq, prefix, tokens)
        prefix.tokens = tokens
        self._drop(seq, held_tokens)

    def _enter(self, seq: Sequence, prefix: _Prefix, tokens: int) -> Node:
        """Enter the first `tokens` tokens of a request, parted at its prompt's end; what the tree has twice is free."""
        tree, prompt = self.kv.tree, seq.prompt_tokens - seq.prompt_tokens % self.kv.page_tokens
        known, node = tree.insert(prefix.content, tokens, counted=prefix.tokens, priority=seq.priority)
        self.kv.free_tokens += max(known - prefix.tokens, 0)
        if 0 < prompt < tokens:
            tree.insert(prefix.content, prompt, counted=prompt, priority=seq.priority + 1)
        return node


__all__ = ["CachedReservingScheduler"]
