"""Prompts that a load takes in order: those of a trace whose times it does not take, or a pool of drawn ones that comes again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hardware_profiles.records import dataclass
from simulator.workload.columns import Content, IntArray, same_int, take_content


@dataclass(frozen=True)
class Prompts:
    """n prompts with their answers.

    Parameters
    ----------
    prompt_tokens, output_tokens : (n,) at least 1. max_output_tokens : (n,) 0 for none given.
    content : what they share, which says what others may name, or None for nothing.
    again : whether they are taken again from the first once all were.
    """

    prompt_tokens: IntArray
    output_tokens: IntArray
    max_output_tokens: IntArray
    content: Content | None
    again: bool

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def take(self, first: int, n: int) -> Prompts:
        """The prompts `first`, `first` + 1, ... of the load."""
        rows = np.arange(first, first + n) % len(self)
        content = None if self.content is None else take_content(self.content, rows)
        prompts, outputs, limits = self.prompt_tokens[rows], self.output_tokens[rows], self.max_output_tokens[rows]
        return Prompts(prompts, outputs, limits, content, self.again)


def once(prompt: IntArray, output: IntArray, limit: IntArray, content: Content | None) -> Prompts:
    """Prompts of which each is sent at most once."""
    if content is not None:
        runs, outputs = content.named_by_others()
        content = replace(content, found=runs, output_found=outputs)
    return Prompts(prompt, output, limit, content, False)


def pool(prompt: IntArray, output: IntArray, limit: IntArray, content: Content | None) -> Prompts:
    """Prompts that come again, with all their tokens."""
    whole = content_to_the_end(content, prompt)
    found, outputs = np.ones(len(whole.segment), np.bool_), whole.output_segment >= 0
    return Prompts(prompt, output, limit, replace(whole, found=found, output_found=outputs), True)


def content_to_the_end(content: Content | None, prompt_tokens: IntArray) -> Content:
    """The content with a segment of its own for what of each prompt no run names yet."""
    n = len(prompt_tokens)
    if content is None:
        none = np.zeros(0, np.int64)
        content = Content(np.zeros(n + 1, np.int64), none, none, none, same_int(-1, n), same_int(0, n))
    owner = np.repeat(np.arange(n), np.diff(content.start))
    left = prompt_tokens - np.bincount(owner, content.length, n).astype(np.int64)
    rows = np.flatnonzero(left > 0)
    at = content.start[1:][rows]
    new = 1 + int(max(content.segment.max(initial=-1), content.output_segment.max(initial=-1))) + np.arange(len(rows))
    start = content.start + np.concatenate(([0], np.cumsum(left > 0)))
    return replace(
        content,
        start=start,
        segment=np.insert(content.segment, at, new),
        offset=np.insert(content.offset, at, 0),
        length=np.insert(content.length, at, left[rows]),
        found=None,
        output_found=None,
    )
