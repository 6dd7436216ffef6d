"""Whole prompts kept for later, each a copy of its own keys and values: no blocks, nothing shared between copies.

An entry is named by its tokens and has a kind. A look-up copies the entry whose beginning it wants, cut to the common part, and
does not refresh its age. A new entry takes out those that are beginnings of it, unless they could not be cut out of it again.
When there are too many, or they hold too much, the oldest of a kind goes: of answers if there are as many of them as of users'
prompts, else of these if there are as many of them as of system prompts, else of those.

Source: behaviour of MLX LM 0.32 (`mlx_lm/models/cache.py`: `LRUPromptCache`, `PromptTrie`), checked step by step against
recordings; see docs/engines/mlx_lm.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine_models.memory.radix import Content, Runs

Kind = Literal["assistant", "user", "system"]
KINDS: tuple[Kind, ...] = ("assistant", "user", "system")


@dataclass(frozen=True, slots=True)
class Copy:
    """One entry: its kind, its tokens and their number."""

    kind: Kind
    key: Runs
    tokens: int


class PromptCopies:
    """The stored prompts of one server.

    Parameters
    ----------
    most : entries at once.
    uncut_from : entries of so many tokens or more cannot be cut (a window has slid, or there is a state); None: all can.
    """

    def __init__(self, most: int, uncut_from: int | None = None) -> None:
        self.most = most
        self.uncut_from = uncut_from
        self.tokens = 0  # of all entries
        self._by_kind: dict[Kind, dict[Runs, Copy]] = {kind: {} for kind in KINDS}  # the oldest first

    def __len__(self) -> int:
        return sum(map(len, self._by_kind.values()))

    def __iter__(self) -> Iterator[Copy]:
        for copies in self._by_kind.values():
            yield from copies.values()

    def find(self, content: Content, prompt_tokens: int) -> tuple[int, int]:
        """Tokens of a prompt that an entry holds, short of its last, and all tokens of that entry, which is copied whole."""
        shorter, common, longer = 0, 0, 0
        for copy in self:
            equal = content.common(0, min(prompt_tokens, copy.tokens), copy.key)
            if equal == copy.tokens > 1:  # one token alone does not count
                shorter = max(shorter, equal)
            if equal > common or (equal == common and copy.tokens < longer):
                common, longer = equal, copy.tokens
        if common > shorter and self._can_be_cut(longer):
            return min(common, prompt_tokens - 1), longer
        return min(shorter, prompt_tokens - 1), shorter

    def store(self, kind: Kind, content: Content, tokens: int) -> list[tuple[str, int]]:
        """Store the first `tokens` tokens; return what goes for it, why and with how many tokens."""
        key = content.slice(0, tokens)
        for copies in self._by_kind.values():
            self._drop(copies.get(key))
        self._by_kind[kind][key] = Copy(kind, key, tokens)
        self.tokens += tokens
        gone: list[tuple[str, int]] = []
        if self._can_be_cut(tokens):
            parts = [copy for copy in self if copy.tokens < tokens and self._begins(copy, content)]
            for copy in sorted(parts, key=lambda copy: copy.tokens):
                self._drop(copy)
                gone.append(("prefix", copy.tokens))
        if len(self) > self.most:
            gone.append(self._evict())
        return gone

    def trim(self, tokens: int) -> list[tuple[str, int]]:
        """Let entries go until they hold no more than `tokens`."""
        gone = []
        while self.tokens > max(tokens, 0):
            gone.append(self._evict())
        return gone

    def _begins(self, copy: Copy, content: Content) -> bool:
        return content.common(0, copy.tokens, copy.key) == copy.tokens

    def _can_be_cut(self, tokens: int) -> bool:
        return self.uncut_from is None or tokens < self.uncut_from

    def _evict(self) -> tuple[str, int]:
        answers, users, systems = self._by_kind.values()
        copies = (
            answers
            if answers and len(answers) >= len(users)
            else users
            if users and len(users) >= len(systems)
            else systems
        )
        oldest = next(iter(copies.values()))
        self._drop(oldest)
        return "evicted", oldest.tokens

    def _drop(self, copy: Copy | None) -> None:
        if copy is not None:
            del self._by_kind[copy.kind][copy.key]
            self.tokens -= copy.tokens
