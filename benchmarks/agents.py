"""Draws scenarios/traces/coding-agents.jsonl: a made-up trace of coding agents in Dynamo's agentic Mooncake format.

    python benchmarks/agents.py

No agent was recorded: every number below is assumed (2026-11), of the order that published traces of coding agents show: prompts
of tens of thousands of tokens that grow by a tool's result a call, waits of seconds for tools, subagents in parallel.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[1] / "scenarios" / "traces" / "coding-agents.jsonl"
SEED, SESSIONS, BLOCK_TOKENS = 7, 10, 512
SYSTEM_TOKENS, SUBAGENT_SYSTEM_TOKENS = 12_288, 6_144
"""Instructions and tools, which all agents have, and all subagents."""


class Ids:
    """Names blocks of tokens by all that stands before their end."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[tuple[str, int], ...]], int] = {}

    def of(self, pieces: list[tuple[str, int]]) -> list[int]:
        """The blocks of a prompt made of named pieces of so many tokens."""
        names, out = [], []
        total = sum(size for _, size in pieces)
        for end in range(BLOCK_TOKENS, total + BLOCK_TOKENS, BLOCK_TOKENS):
            names, left = [], min(end, total)
            for name, size in pieces:
                names.append((name, min(size, left)))
                left -= min(size, left)
                if not left:
                    break
            out.append(self._known.setdefault((min(end, total), tuple(names)), len(self._known)))
        return out


def main() -> None:
    """Draw and write the trace."""
    rng, ids = np.random.default_rng(SEED), Ids()
    rows: list[dict[str, object]] = []

    def lognormal(mean: float, sigma: float, least: int) -> int:
        return max(least, int(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma)))

    def call(name: str, session: str, pieces: list[tuple[str, int]], after: list[str], wait_s: float, begin_s: float) -> int:
        output = lognormal(350, 0.9, 20)
        row: dict[str, object] = {"request_id": name, "session_id": session}
        row |= {"wait_for": after, "tool_wait_ms": round(1e3 * wait_s)} if after else {"timestamp": round(1e3 * begin_s)}
        total = sum(size for _, size in pieces)
        rows.append(row | {"input_length": total, "output_length": output, "hash_ids": ids.of(pieces)})
        return output

    begin_s = 0.0
    for number in range(SESSIONS):
        begin_s += rng.exponential(20.0)
        run = f"run{number}"
        pieces = [("system", SYSTEM_TOKENS), (f"{run}.task", lognormal(1500, 0.8, 100))]
        after: list[str] = []
        for turn in range(int(rng.integers(6, 15))):
            name = f"{run}.{turn}"
            output = call(name, run, pieces, after, lognormal(4000, 1.0, 100) / 1e3, begin_s)
            pieces = [*pieces, (f"{name}.answer", output), (f"{name}.result", lognormal(1400, 1.0, 50))]
            after = [name]
            if rng.random() < 0.15:
                lasts = []
                for branch in range(int(rng.integers(2, 5))):
                    below, behind = f"{name}.sub{branch}", [name]
                    inner = [("subagent", SUBAGENT_SYSTEM_TOKENS), (f"{below}.task", lognormal(700, 0.6, 100))]
                    for step in range(int(rng.integers(2, 6))):
                        inside = f"{below}.{step}"
                        got = call(inside, below, inner, behind, lognormal(2500, 1.0, 100) / 1e3, 0.0)
                        inner = [*inner, (f"{inside}.answer", got), (f"{inside}.result", lognormal(1800, 1.0, 50))]
                        behind = [inside]
                    lasts += behind
                after = lasts
    OUT.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    print(f"{len(rows)} calls of {SESSIONS} runs, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
