"""Continuous batching in two servers with LoRA adapters or grammars: `pulled` by the rules of `adapted`.

Both servers hold the adapters; a request whose blocks have come waits on for its adapter's place, with the blocks.
"""

from __future__ import annotations

from engine_models.schedulers.adapted import AdaptedScheduler
from engine_models.schedulers.pulled import DecodeOfPull, DecodeOfPush, PrefillOfPull, PrefillOfPush


class AdaptedPrefillOfPull(PrefillOfPull, AdaptedScheduler):
    """`PrefillOfPull` with adapters."""


class AdaptedDecodeOfPull(DecodeOfPull, AdaptedScheduler):
    """`DecodeOfPull` with adapters."""


class AdaptedPrefillOfPush(PrefillOfPush, AdaptedScheduler):
    """`PrefillOfPush` with adapters."""


class AdaptedDecodeOfPush(DecodeOfPush, AdaptedScheduler):
    """`DecodeOfPush` with adapters."""


__all__ = ["AdaptedDecodeOfPull", "AdaptedDecodeOfPush", "AdaptedPrefillOfPull", "AdaptedPrefillOfPush"]
