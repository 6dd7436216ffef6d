"""Cached states of whole prompts, kept in host memory and taken out again.

An entry is the state of a slot as it was saved: its tokens, all of them. Saving drops the entries that begin the new one, then
the oldest until there is room, and does nothing if the new one begins an entry. Taking out a state removes the entry.

Source: behaviour of llama.cpp at 0c1e57098 (`tools/server/server-task.cpp`, `server_prompt_cache`), checked step by step against
recordings of build 11669; see docs/engines/llama_cpp.md.
"""

from __future__ import annotations

from typing import NamedTuple

from engine_models.memory.radix import Content, Run

LEAST_KEPT = 0.25
"""An entry of which less than this share would be used is left alone (datasheet: `server_prompt_cache::load`)."""


class Saved(NamedTuple):
    """What saving a state did: nothing, as it is there (`already`) or `too_big`; dropped entries that begin it, by their tokens
    (`obsolete`), and so many of the oldest (`evicted`)."""

    already: bool = False
    obsolete: tuple[int, ...] = ()
    too_big: bool = False
    evicted: int = 0


class Found(NamedTuple):
    """An entry taken out, the share of it that equals the prompt, and the share of the prompt that it is."""

    content: Content
    kept_share: float
    prompt_share: float


def alike(content: Content, tokens: int, prompt: Content, limit: int) -> int:
    """Tokens at the beginning of `prompt` (up to `limit`) that equal those of `content`, of which `tokens` are there."""
    if not tokens or not limit:
        return 0
    return content.common(0, min(tokens, limit), prompt.runs)


class WholePrompts:
    """States of prompts up to a limit of bytes, of `token_bytes` a token and `entry_bytes` besides; without one, up to
    `limit_tokens` by `trim`."""

    def __init__(
        self, limit_bytes: float, token_bytes: float, limit_tokens: float = float("inf"), entry_bytes: float = 0.0
    ) -> None:
        self.limit_bytes = limit_bytes
        self.limit_tokens = limit_tokens
        self.token_bytes = token_bytes
        self.entry_bytes = entry_bytes
        self.tokens = 0
        self._entries: dict[int, Content] = {}  # the oldest first
        self._by_start: dict[Run, dict[int, Content]] = {}  # by the first token
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def save(self, content: Content) -> Saved:
        """Keep a state, which is not empty."""
        mine = self._by_start.get(_start(content), {})
        shared = {
            serial: alike(entry, entry.length, content, content.length) for serial, entry in mine.items()
        }
        if content.length in shared.values():
            return Saved(already=True)
        if self._bytes(content.length, 1) > self.limit_bytes:
            return Saved(too_big=True)
        obsolete = [serial for serial, tokens in shared.items() if tokens == mine[serial].length]
        dropped = tuple(self._drop(serial).length for serial in obsolete)
        evicted = 0
        while self._bytes(self.tokens + content.length, len(self) + 1) > self.limit_bytes:
            self._drop(next(iter(self._entries)))
            evicted += 1
        self._serial += 1
        self._entries[self._serial] = content
        self._by_start.setdefault(_start(content), {})[self._serial] = content
        self.tokens += content.length
        return Saved(obsolete=dropped, evicted=evicted)

    def _bytes(self, tokens: int, entries: int) -> float:
        return tokens * self.token_bytes + entries * self.entry_bytes

    def trim(self) -> int:
        """Drop the oldest states but the last until they hold no more tokens than they may; return how many."""
        dropped = 0
        while len(self) > 1 and self.tokens > self.limit_tokens:
            self._drop(next(iter(self._entries)))
            dropped += 1
        return dropped

    def take(
        self, prompt: Content, limit: int, kept_share: float, prompt_share: float, room_tokens: float = float("inf")
    ) -> Found | None:
        """Take out the entry that beats both shares of what a slot holds, of a prompt of `limit` tokens; None if none does.

        One of more than `room_tokens` stays.
        """
        best = -1
        for serial, entry in self._by_start.get(_start(prompt), {}).items():
            shared = alike(entry, entry.length, prompt, limit)
            kept, like = shared / entry.length, shared / limit
            if kept >= LEAST_KEPT and kept > kept_share and like > prompt_share:
                best, kept_share, prompt_share = serial, kept, like
        if best < 0:
            return None
        fits = self._entries[best].length <= room_tokens
        return Found(self._drop(best) if fits else self._entries[best], kept_share, prompt_share)

    def _drop(self, serial: int) -> Content:
        content = self._entries.pop(serial)
        start = _start(content)
        of_start = self._by_start[start]
        del of_start[serial]
        if not of_start:
            del self._by_start[start]
        self.tokens -= content.length
        return content


def _start(content: Content) -> Run:
    segment, offset, _ = content.runs[0]
    return segment, offset, 0
