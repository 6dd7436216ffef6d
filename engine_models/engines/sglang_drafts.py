"""SGLang's speculative decoding: its defaults, what it refuses, and the memory and graphs of drafts.

Source: SGLang 0.5.23 (`arg_groups/speculative_hook.py`, `arg_groups/cuda_graph_hook.py`, `mem_cache/allocation_sizing.py`,
`model_executor/pool_configurator.py`; wheel on PyPI, read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.drafting import Speculation
from engine_models.declaration import Role
from engine_models.model.architecture import state_bytes_per_sequence
from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

DRAFTED_ROWS = 48
"""`max_running_requests` with drafts unless it is given (datasheet: as the module)."""
TREE, CHAIN = (5, 4, 8), (3, 1, 4)
"""Drafting steps, tokens that each goes on from, and tokens verified, unless they are given: of dense Llama and Grok, and of
others (datasheet: as the module)."""
TREE_FAMILIES = ("llama", "grok-1")
NGRAM_TOKENS = 12
"""Tokens verified with n-gram drafts unless they are given (datasheet: as the module)."""

CHAINS_OVERLAP_SINCE, ALL_OVERLAP_SINCE = (0, 5, 12), (0, 5, 14)
"""First versions whose overlap scheduler serves chains of drafts, and all drafts; before, the environment's SGLANG_ENABLE_SPEC_V2
turns it on for chains of a drafter with layers (datasheet: wheels of 0.5.9, 0.5.10, 0.5.12 and 0.5.14, read 2026-11)."""


def overlaps(drafts: Speculation, version: tuple[int, ...], asked: bool | None) -> bool:
    """Whether steps with drafts are scheduled ahead unless a flag says otherwise; `asked`: what the environment says."""
    if version >= ALL_OVERLAP_SINCE:
        return True
    chain = drafts.draft is not None and drafts.branches == 1
    return chain and (version >= CHAINS_OVERLAP_SINCE if asked is None else asked)


def draft_defaults(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """A pool's `speculative` settings with SGLang's defaults; InputError for what SGLang refuses or is not modelled."""
    found = dict(settings)
    method = found.get("method")
    if method in ("medusa", "lookahead"):
        raise InputError(
            "SGLang has no Medusa heads" if method == "medusa" else "SGLang does not draft by lookahead",
            where="deployment.speculative.method",
            mend="one of eagle, eagle3, mtp, draft_model, ngram",
        )
    if flags.get("enable_mixed_chunk"):
        raise InputError(
            "enable_mixed_chunk beside speculative decoding is not modelled",
            where="deployment.engine_args.enable_mixed_chunk",
            mend="remove one of the two; without mixed chunks prompts go before decoding",
        )
    if method == "ngram":
        verified = found.pop("num_draft_tokens", None) or found.get("num_speculative_tokens", NGRAM_TOKENS - 1) + 1
        found.pop("eagle_topk", None)
        return found | {"num_speculative_tokens": verified - 1}
    shape: list[Any] = [found.get(key) for key in ("num_speculative_tokens", "eagle_topk", "num_draft_tokens")]
    if shape[0] is None and any(shape):
        raise InputError(
            "SGLang takes speculative_eagle_topk and speculative_num_draft_tokens beside speculative_num_steps only",
            where="deployment.speculative.num_speculative_tokens",
            mend="give speculative_num_steps too",
        )
    if shape[0] is None:
        tree = method != "draft_model" and arch.model_type in TREE_FAMILIES
        shape = list(TREE if tree else CHAIN)
    steps, branches, verified = shape
    branches = branches or 1
    if branches > 1 and verified is None:
        raise InputError(
            f"a tree of drafts (eagle_topk {branches}) needs the tokens that are verified",
            where="deployment.speculative.num_draft_tokens",
            mend="give speculative_num_draft_tokens, such as 8",
        )
    # of a chain all drafts are verified, whatever the flag says
    return found | {
        "num_speculative_tokens": steps,
        "eagle_topk": branches,
        "num_draft_tokens": verified if branches > 1 else steps + 1,
    }


def check_stages(drafts: Speculation, role: Role) -> None:
    """InputError for drafts beside pipeline stages where SGLang refuses them.

    Source: `check_pipeline_parallel_compat` in `arg_groups/validation_hook.py` of 0.5.23; SGLANG_ENABLE_PP_SPEC, which lifts it
    for servers of both kinds of steps and is off unless set, is not read.
    """
    if role == "prefill" and drafts.method in ("eagle", "mtp"):
        return
    raise InputError(
        "SGLang drafts over pipeline stages in a prefill pool alone, and by EAGLE or the model's own layer",
        where="deployment.pipeline_parallel",
        mend="use tensor_parallel for the devices instead",
    )


@dataclass(frozen=True)
class Verifying:
    """What a scheduler knows of drafts.

    row_tokens : tokens of a row that a step verifies, that before the drafts included.
    step_slots : KV slots that a step may write for a row.
    pairs : whether prefixes are found by pairs of tokens, as a drafter of EAGLE's kind reads the next token beside each.
    """

    row_tokens: int
    step_slots: int
    pairs: bool = False


PAIRED = ("eagle", "eagle3", "mtp")
"""Methods whose drafter reads pairs of tokens (datasheet: `is_eagle` in `speculative/spec_info.py`, 0.5.23)."""


def verifying(drafts: Speculation, page_tokens: int, arch: Architecture) -> Verifying:
    """What a scheduler knows of a pool's drafts; a tree that keeps states of recurrent layers is by tokens."""
    layered, tokens = drafts.draft is not None, drafts.row_tokens
    slots = step_slots(drafts.tokens, drafts.branches, tokens, page_tokens, layered=layered)
    return Verifying(tokens, slots, drafts.method in PAIRED and not state_bytes_per_sequence(arch, 1, 1))


def step_slots(steps: int, branches: int, row_tokens: int, page_tokens: int, *, layered: bool) -> int:
    """KV slots that a step may write for a row: drafts, or what is verified; on pages each branch has pages of its own.

    steps : passes of the drafter. branches : tokens that each goes on from. layered : whether the drafter keeps keys and values.
    """
    if page_tokens == 1 or branches == 1 or not layered:
        return max(steps * branches if layered else 0, row_tokens)
    pages = (page_tokens - 1 + steps + page_tokens - 1) // page_tokens
    return max(pages * page_tokens * branches, row_tokens)


def kv_share_of_drafter(drafts: Speculation, arch: Architecture) -> float:
    """KV bytes of a token in the drafter's layers over those in the model's: each layer counts like the model's."""
    return drafts.draft.layers / arch.layers if drafts.draft is not None else 0.0


def drafted_graph_rows(largest: int) -> tuple[int, ...]:
    """Decode-graph sizes in rows with drafts: each to 8, every second to 32, fourth to 64, eighth to 256, sixteenth beyond."""
    sizes = {*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8), *range(272, largest + 1, 16), largest}
    return tuple(sorted(size for size in sizes if size <= largest))
