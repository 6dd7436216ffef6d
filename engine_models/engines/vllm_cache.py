"""How vLLM lays out its KV cache: layers of one kind form groups, which draw blocks from one pool; the longest request in it."""

from __future__ import annotations

import math

from engine_models.declaration import PoolRequest, Said
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_compressed import compressed_grouping
from engine_models.engines.vllm_context import check_context, context_ranks
from engine_models.engines.vllm_grouping import Grouping, grouping
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version
from engine_models.memory.hybrid_kv import STATE_WINDOW
from engine_models.model.architecture import KvGroup, kv_groups, state_pages
from engine_models.model.blocks import Architecture
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.records import dataclass


def kv_layout(groups: list[KvGroup], max_model_len: int, block_tokens: int) -> tuple[tuple[int | None, ...], int]:
    """Windows of the KV groups, and the bytes of one block on one rank.

    Layers of one kind form groups of equal size, the smallest kind's number of layers; every group draws blocks from the same
    pool, each block holding `block_tokens` tokens of one group's layers. A window no shorter than the context is none.
    Where layers of a window keep more of a token than those without, their groups hold fewer of them, so that blocks stay
    alike (vLLM gives the others longer blocks instead: the same bytes).
    """
    kinds: dict[int | None, tuple[int, int]] = {}
    for group in groups:
        window = group.window_tokens if 0 < group.window_tokens < max_model_len else None
        layers, size = kinds.get(window, (0, 0))
        kinds[window] = (layers + group.layers, size + group.bytes_per_token_per_rank)
    if len(kinds) == 1 and None in kinds:
        return (None,), kinds[None][1] * block_tokens
    each = {size / layers for layers, size in kinds.values()}
    if None in kinds and max(each) > 1.01 * min(each):
        whole = kinds[None][1]
        split = {window: max(1, round(size / whole)) for window, (_, size) in kinds.items() if window is not None}
        largest = max(whole, *(-(-size // split[w]) for w, (_, size) in kinds.items() if w is not None))
        return (None, *(w for w, number in sorted(split.items()) for _ in range(number))), largest * block_tokens
    layers_a_group = min(layers for layers, _ in kinds.values())
    windows: list[int | None] = []
    for window, (layers, _) in sorted(kinds.items(), key=lambda item: item[0] is not None):
        windows += [window] * -(-layers // layers_a_group)
    per_layer = max(size / layers for layers, size in kinds.values())
    return tuple(windows), int(per_layer * layers_a_group * block_tokens)


def with_states(
    arch: Architecture, groups: list[KvGroup], tp: int, pp: int, max_model_len: int, block_tokens: int
) -> tuple[tuple[int | None, ...], int, int]:
    """`kv_layout` with the states of recurrent layers as groups of the same pool; windows, bytes of a block, its tokens.

    A block is lengthened until that of an attention layer holds a recurrent layer's state, whose own page is padded to it
    (vLLM, `platforms/interface.py`, read in public copies of 2026).
    """
    layers, page = state_pages(arch, tp, pp)
    if not page:
        return (*kv_layout(groups, max_model_len, block_tokens), block_tokens)
    of_token = max(group.bytes_per_token_per_rank / group.layers for group in groups)
    block_tokens *= max(1, math.ceil(page / (block_tokens * of_token)))
    windows, block_bytes = kv_layout(groups, max_model_len, block_tokens)
    states = math.ceil(layers * of_token * block_tokens / block_bytes)
    return (*windows, *[STATE_WINDOW] * states), block_bytes, block_tokens


LATENT_BLOCK, LATENT_BLOCK_NOW, LATENT_BLOCK_SINCE = 64, 128, (0, 33)
"""Tokens of which blocks of latents are multiples where states of recurrent layers share their pool (datasheet:
`model_executor/models/config.py` of 0.13.0, `platforms/interface.py` of 0.33.0; between assumed as before). Kimi-Linear on
two GPUs under 0.11.1 tells 75,840 tokens, 79 blocks of 960 in each of four groups (vllm-project/vllm#28228)."""


def latent_block(arch: Architecture, tp: int, pp: int, version: tuple[int, ...]) -> int:
    """Least tokens of a block of latents beside states, 1 elsewhere."""
    if not (arch.has("mla") and state_pages(arch, tp, pp)[1]):
        return 1
    return LATENT_BLOCK_NOW if version >= LATENT_BLOCK_SINCE else LATENT_BLOCK


STATES_CACHED_SINCE = (0, 26)
"""First version that caches prefixes of models with recurrent layers unless a flag says otherwise (datasheet:
`is_prefix_caching_supported` in `config/model.py` of the wheels of 0.25.0 and 0.26.0, read 2026-11)."""


CHECKPOINTS_SINCE = (0, 29)
CHECKPOINTED = {"gated delta net": ("hopper", "blackwell"), "Mamba-2": ("ampere", "ada", "hopper", "blackwell")}
"""Architectures on which a recurrence leaves the state behind a prompt's last whole block within the step that ends the prompt,
by FlashInfer's kernel or Mamba-2's own; elsewhere the prompt stops there, and its rest is a step more (datasheet:
`get_prefill_checkpoint_alignment`, `_resolve_gdn_prefill_backend` in `model_executor/layers/mamba` of 0.33.0; of 0.29.0 its
scheduler alone was read)."""


def leaves_checkpoints(request: PoolRequest, version: Version) -> bool:
    """Whether all recurrences of a pool's model do, on its device."""
    architecture = load_device(request.device_name).architecture
    mechanisms = [block.mechanism for block in request.arch.attention if block.kind == "linear"]
    return version.number >= CHECKPOINTS_SINCE and all(architecture in CHECKPOINTED.get(each, ()) for each in mechanisms)


@dataclass(frozen=True)
class Cache:
    """Groups of KV blocks: the windows of each, bytes and tokens of a block, how many of the groups hold states.

    checkpoints : see `leaves_checkpoints`. drafts : behind each of which a state is kept.
    told : vLLM's own grouping and the bytes of a block of this one, where the start-up line rests on it.
    """

    windows: tuple[int | None, ...]
    block_bytes: int
    block: int
    states: int
    prefix_caching: bool
    told: tuple[Grouping, int] | None = None
    checkpoints: bool = False
    drafts: int = 0

    @classmethod
    def of(cls, request: PoolRequest, version: Version, serving: Serving, said: Said) -> Cache:
        """The groups of a pool; InputError for what is not modelled of them."""
        flags, arch, first, drafts = request.flags, request.arch, version.first_engine, request.speculation
        tp, pp = request.tensor_parallel, request.pipeline_parallel
        groups = kv_groups(arch, request.formats.kv_cache, tp, pp)
        least = max(serving.block, latent_block(arch, tp, pp, version.number))
        windows, block_bytes, block = with_states(arch, groups, tp, pp, serving.context, least)
        check_context(request, version.number)
        if (sharing := context_ranks(request)) > 1:
            block *= sharing
            said.notes.append(f"{sharing} tensor ranks hold a part of each sequence's KV cache, in blocks of {block} tokens")
        if any(window not in (None, STATE_WINDOW) for window in windows) and flags.get("disable_hybrid_kv_cache_manager"):
            raise InputError(
                f"disable_hybrid_kv_cache_manager keeps whole sequences in the sliding windows of {arch.name}, "
                "which is not modelled",
                where="deployment.engine_args.disable_hybrid_kv_cache_manager",
                mend="remove the flag",
            )
        states = sum(window == STATE_WINDOW for window in windows)
        if first:
            vllm_v0.refuse(request, version.name, windows=len(windows) > states + 1 or None not in windows, states=states > 0)
        default = not first and (not states or version.number >= STATES_CACHED_SINCE)
        caching = bool(flags.get("enable_prefix_caching", default))
        several = len(windows) > 1 and (states > 0 or all(layer.kind != "mla" for layer in arch.attention))
        told = (grouping(arch, groups, tp, pp, serving.context, block), block_bytes) if several else None
        if pp == 1 and arch.compresses:
            told = (compressed_grouping(arch, request.formats.kv_cache), block_bytes)
        checkpoints = leaves_checkpoints(request, version)
        if states:
            kept = "" if checkpoints else ", where a step ends"
            said.notes.append(
                f"recurrent layers: {states} blocks of {block} tokens hold the states of a request, whatever its length; "
                + (
                    f"of a prompt they can be found again at its last whole block{kept}, and where others leave it"
                    if caching
                    else "no prefix cache, as vLLM's default before 0.26"
                )
            )
        if drafts is not None:
            block_bytes += drafts.kv_bytes_per_token() * block
        return cls(windows, block_bytes, block, states, caching, told, checkpoints, drafts.tokens if drafts else 0)

    def stated_tokens(self, blocks: int, context: int, step_tokens: int, parts: tuple[int, ...]) -> int | None:
        """Tokens that the start-up line tells of `blocks`, None for those of all groups without a window."""
        if self.told is None:
            return None
        grouping, block_bytes = self.told
        return grouping.stated_tokens(blocks * block_bytes, context, step_tokens, parts, 2 if self.prefix_caching else 1)

    @property
    def keeps_states(self) -> bool:
        """Whether states of recurrent layers can be found again."""
        return self.states > 0 and self.prefix_caching

    @property
    def full_groups(self) -> int:
        """Groups that hold all tokens of a request."""
        return max(1, sum(window is None for window in self.windows))

    def window_blocks(self, serving: Serving) -> int:
        """Blocks that the windows of the longest request take at most.

        Of states that are kept, in each of their groups: the one before a step and the two that it may leave (`HybridKV`).
        """
        in_flight = serving.in_flight * serving.tokens
        spans = [min(w - 1 + in_flight, serving.context) for w in self.windows if w not in (None, STATE_WINDOW)]
        return sum(-(-span // self.block) + 1 for span in spans) + self.states * (
            (3 if self.prefix_caching else 1) + self.drafts
        )

    def context(self, request: PoolRequest, serving: Serving, blocks: int, kv_bytes: int, said: Said) -> int:
        """The longest request; InfeasibleError where the flag states one that the cache does not hold."""
        held = max(0, blocks - self.window_blocks(serving)) // self.full_groups * self.block
        if held > serving.context or request.flags.get("num_gpu_blocks_override"):
            return serving.context
        if serving.fitted:
            said.notes.append(f"max_model_len -1: fitted to {held - self.block} tokens")
            return held - self.block
        devices = request.tensor_parallel * request.pipeline_parallel
        raise InfeasibleError(
            f"the KV cache holds {held:,} tokens, one request of max_model_len {serving.context:,} does not fit "
            f"({kv_bytes / 1e9:.1f} GB left for the cache on each of {devices} devices)",
            where="deployment",
            mend=f"set engine_args.max_model_len to at most {max(0, held - self.block)}, or use more or larger devices",
        )


__all__ = ["Cache"]
