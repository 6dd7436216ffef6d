"""How vLLM groups the layers that share a pool of KV blocks, of which its start-up line is told."""

from __future__ import annotations

from engine_models.memory.hybrid_kv import STATE_WINDOW
from engine_models.model.architecture import KvGroup, state_pages
from engine_models.model.blocks import Architecture
from hardware_profiles.records import dataclass

CAPACITY_SINCE = (0, 21)
"""The start-up line tells tokens of the longest requests; before, those of a pool in which every group holds all tokens."""


@dataclass(frozen=True)
class Grouping:
    """vLLM's own groups: window, number and tokens of a block of each kind, and the bytes of a block without a drafter's."""

    kinds: tuple[tuple[int | None, int, int], ...]
    block_bytes: int

    def stated_tokens(self, kv_bytes: int, context: int, step_tokens: int, version: tuple[int, ...], kept_states: int) -> int:
        """Tokens that the line "GPU KV cache size" tells of a cache of `kv_bytes` (`kv_cache_utils.py`, 0.11 to 0.33).

        kept_states : states that a request has in each group of recurrent layers, two where they can be found again.
        """
        blocks = kv_bytes // self.block_bytes
        if version < CAPACITY_SINCE:
            return blocks // sum(number for _, number, _ in self.kinds) * min(tokens for *_, tokens in self.kinds)
        taken = 0
        for window, number, tokens in self.kinds:
            if window == STATE_WINDOW:
                taken += number * kept_states
            elif window is None:
                taken += number * -(-context // tokens)
            else:
                taken += number * (-(-min(window - 1 + step_tokens, context) // tokens) + 1)
        return int(blocks / taken * context)


def grouping(arch: Architecture, groups: list[KvGroup], tp: int, pp: int, max_model_len: int, block_tokens: int) -> Grouping:
    """How vLLM groups layers: as many of each kind as the rarest has, in pages of the size of the widest.

    Layers that keep less of a token have longer blocks. `block_tokens` are those of `with_states`.
    """
    layers: dict[int | None, int] = {}
    sizes: dict[int | None, float] = {}
    for group in groups:
        window = group.window_tokens if 0 < group.window_tokens < max_model_len else None
        layers[window] = layers.get(window, 0) + group.layers
        sizes[window] = sizes.get(window, 0) + group.bytes_per_token_per_rank
    each = {window: sizes[window] / layers[window] for window in layers}
    recurrent, _ = state_pages(arch, tp, pp)
    together = min(layers.values()) if not recurrent else min(recurrent, *layers.values())
    widest = max(each.values())
    kinds = [
        (window, -(-layers[window] // together), block_tokens * max(1, round(widest / each[window]))) for window in layers
    ]
    if recurrent:
        kinds.append((STATE_WINDOW, -(-recurrent // together), block_tokens))
    return Grouping(tuple(kinds), int(widest * block_tokens * together))


__all__ = ["Grouping", "grouping"]
