"""Shared content: from block lists or conversations to runs of tokens."""

from __future__ import annotations

import numpy as np

from simulator.workload.columns import BoolArray, Content, IntArray, Named


def content_of_named_blocks(
    start: IntArray, ids: IntArray, block_tokens: int, prompt_tokens: IntArray, source: str
) -> Content:
    """Return the runs of prompts given as lists of content blocks that other loads name too: one for each block.

    Parameters as of `content_of_blocks`; `source` is where the names come from.
    """
    n = len(prompt_tokens)
    row = np.repeat(np.arange(n), np.diff(start))
    left = prompt_tokens[row] - (np.arange(len(ids)) - start[row]) * block_tokens
    kept = left > 0
    names, segment = np.unique(ids[kept], return_inverse=True)
    starts = np.searchsorted(row[kept], np.arange(n + 1)).astype(np.int64)
    return Content(
        starts,
        segment.astype(np.int64),
        np.zeros(len(segment), np.int64),
        np.minimum(left[kept], block_tokens),
        np.full(n, -1, np.int64),
        np.zeros(n, np.int64),
        named=(Named(source, names, np.arange(len(names))),),
    )


def content_of_blocks(start: IntArray, ids: IntArray, block_tokens: int, prompt_tokens: IntArray) -> Content:
    """Return the runs of prompts given as lists of content blocks.

    Parameters
    ----------
    start : (n + 1,) CSR offsets into `ids`. ids : block names; equal names hold equal tokens.
    block_tokens : tokens per block; a prompt's last block may be partial.
    prompt_tokens : (n,).

    Notes
    -----
    A block that always follows the same block, and is the first to do so, continues its segment, so that a
    conversation is one run however many blocks it has. Blocks at a prompt's end that occur nowhere else are
    private and left out.
    """
    n = len(prompt_tokens)
    nothing = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    empty = np.empty(0, np.int64)
    if not len(ids):
        return Content(np.zeros(n + 1, np.int64), empty, empty, empty, *nothing)
    row = np.repeat(np.arange(n), np.diff(start))
    place = np.arange(len(ids)) - start[row]
    _, first, block, times = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    before = np.where(place > 0, np.roll(block, 1), -1)

    # Which block each one follows, where that is always the same one.
    follows = before[first]
    varies = np.zeros(len(first), bool)
    varies[block[before != follows[block]]] = True
    follows = np.where(varies, -1, follows)
    candidates = np.flatnonzero(follows >= 0)
    candidates = candidates[np.argsort(first[candidates], kind="stable")]
    _, earliest = np.unique(follows[candidates], return_index=True)
    link = np.full(len(first), -1, np.int64)
    chosen = candidates[earliest]
    link[chosen] = follows[chosen]

    # Root and depth of each chain by doubling.
    root = np.where(link >= 0, link, np.arange(len(first)))
    depth = (link >= 0).astype(np.int64)
    while True:
        further = root[root]
        if np.array_equal(further, root):
            break
        depth = depth + depth[root]
        root = further

    # Keep each prompt up to its last block that also occurs elsewhere.
    shared = np.flatnonzero(times[block] > 1)
    keep = np.zeros(n, np.int64)
    keep[row[shared]] = place[shared] + 1
    kept = np.flatnonzero(place < keep[row])
    row, place, block = row[kept], place[kept], block[kept]
    length = np.minimum(block_tokens, prompt_tokens[row] - place * block_tokens)
    kept = np.flatnonzero(length > 0)
    row, place, block, length = row[kept], place[kept], block[kept], length[kept]
    if not len(row):
        return Content(np.zeros(n + 1, np.int64), empty, empty, empty, *nothing)

    segment, offset = root[block], depth[block] * block_tokens
    opens = np.ones(len(row), bool)
    opens[1:] = (
        (row[1:] != row[:-1]) | (segment[1:] != segment[:-1]) | (offset[1:] != offset[:-1] + block_tokens)
    )
    heads = np.flatnonzero(opens)
    runs_start = np.searchsorted(row[heads], np.arange(n + 1)).astype(np.int64)
    _, compact = np.unique(segment[heads], return_inverse=True)
    lengths = np.add.reduceat(length, heads).astype(np.int64)
    return Content(runs_start, compact.astype(np.int64), offset[heads].astype(np.int64), lengths, *nothing)


def content_of_sessions(
    session: IntArray,
    turn: IntArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    *,
    group: IntArray | None = None,
    group_tokens: int = 0,
) -> tuple[Content, int]:
    """Return the runs of conversations, and how many turns did not contain their history.

    Turn k's prompt is read as turn k-1's prompt, its output, and new tokens. If it is too short for the
    output (reasoning dropped), the previous prompt alone is taken as shared; if too short even for that
    (history cut), nothing but the group's prefix is. Both are counted.

    Parameters
    ----------
    session, turn : (n,) session -1 is a single request. Rows of a session stand in the order of turns.
    group : (n,) group of the common first `group_tokens` tokens, or None.
    """
    n = len(session)
    groups = 0 if group is None else int(group.max(initial=-1)) + 1
    head = np.zeros(n, np.int64) if group is None else np.minimum(group_tokens, prompt_tokens)
    member = session >= 0
    order = np.flatnonzero(member)
    order = order[np.lexsort((turn[order], session[order]))]
    later = np.zeros(len(order), bool)
    later[1:] = session[order][1:] == session[order][:-1]
    prompt, output = prompt_tokens[order], output_tokens[order]
    intact = np.ones(len(order), bool)
    intact[1:] = ~later[1:] | (prompt[1:] >= prompt[:-1] + output[:-1])
    names = np.full(n, -1, np.int64)
    _, compact = np.unique(session[order], return_inverse=True)
    names[order] = groups + compact
    broken = int((~intact).sum())
    if broken:
        return _broken_sessions(order, later, names, prompt_tokens, output_tokens, group, head), broken

    return content_of_turns(names, prompt_tokens, group, head), 0


def content_of_turns(
    names: IntArray,
    prompt_tokens: IntArray,
    group: IntArray | None,
    head: IntArray,
    again: BoolArray | None = None,
) -> Content:
    """Return the runs of turns whose prompts contain all that came before in their conversation.

    Parameters
    ----------
    names : (n,) segment of the conversation, -1 for a single request.
    group, head : (n,) segment and length [tokens] of what a group of conversations begin with.
    again : (n,) whether another turn names the conversation's segment; groups are then taken to be named by others.
    """
    member = names >= 0
    body = np.where(member, prompt_tokens - head, 0)
    with_head, with_body = head > 0, body > 0
    counts = with_head.astype(np.int64) + with_body
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    segment, length = np.zeros(start[-1], np.int64), np.zeros(start[-1], np.int64)
    found = None if again is None else np.ones(start[-1], np.bool_)
    if group is not None:
        at = start[:-1][with_head]
        segment[at], length[at] = group[with_head], head[with_head]
    at = (start[:-1] + with_head)[with_body]
    segment[at], length[at] = names[with_body], body[with_body]
    if found is not None and again is not None:
        found[at] = again[with_body]
    return Content(start, segment, np.zeros(start[-1], np.int64), length, names, body, found, again)


def _broken_sessions(
    order: IntArray,
    later: np.ndarray[tuple[int], np.dtype[np.bool_]],
    names: IntArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    group: IntArray | None,
    head: IntArray,
) -> Content:
    n = len(prompt_tokens)
    runs: list[list[tuple[int, int, int]]] = [
        [] if group is None or not head[i] else [(int(group[i]), 0, int(head[i]))] for i in range(n)
    ]
    out_segment, out_offset = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    fresh = int(names.max()) + 1
    for j, i in enumerate(order.tolist()):
        tokens = int(prompt_tokens[i])
        if not later[j]:
            mine, name, base = runs[i], int(names[i]), int(head[i])
        else:
            above = int(order[j - 1])
            held = int(prompt_tokens[above])
            if tokens >= held + int(output_tokens[above]):
                mine = runs[above]
                name, base = int(out_segment[above]), held - int(out_offset[above])
            else:
                mine = runs[above] if tokens >= held else runs[i]
                base = held if tokens >= held else int(head[i])
                name, fresh = fresh, fresh + 1
        # The segment `name` stands at prompt position `base`; it now reaches to the prompt's end.
        kept = [run for run in mine if run[0] != name]
        runs[i] = [*kept, (name, 0, tokens - base)] if tokens > base else kept
        out_segment[i], out_offset[i] = name, tokens - base
    flat = np.array([run for row in runs for run in row], np.int64).reshape(-1, 3)
    start = np.concatenate(([0], np.cumsum([len(row) for row in runs]))).astype(np.int64)
    return Content(start, flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].copy(), out_segment, out_offset)
