"""Images under vLLM: the budget and the cache of its vision tower, and the kernels of its attention.

Source: vLLM 0.33.0's `v1/core/encoder_cache_manager.py` (`compute_mm_encoder_budget`) and `v1/worker/gpu_model_runner.py`.
"""

from __future__ import annotations

from engine_models.cost.images import EncoderKernels, ImageLoad, Images
from engine_models.declaration import Embeddings, PoolRequest, Said
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version
from engine_models.images import images_of
from engine_models.schedulers.encoding import EncoderLimits
from hardware_profiles.device import load_device, stacked_blackwell
from hardware_profiles.errors import InputError

FLASH_3 = EncoderKernels(0.50, 12e-6, 16, 11.0)
FLASH_4 = EncoderKernels(0.35, 8e-6, 16, 17.0)
FLASH_2 = EncoderKernels(0.65, 8e-6, 32, 15.0)
"""FlashAttention as vLLM's towers run it, of Hopper, of Blackwell in data centres, of others. kind: fitted, 2026-11, three
numbers a kernel, to the encoder attention of vLLM 0.24 and 0.25, 30 shapes of heads on eight GPUs (ai-dynamo/aiconfigurator)."""
FILE_BYTES_PER_S = 5e9
"""Rate at which a step reads an embedding's file to the device (`ECExampleConnector`). kind: assumed, a file in the memory of the
machine that is copied by one thread."""
READS_AHEAD = ("eagle", "eagle3", "mtp")
"""Drafts from what the model has computed read the token behind it (datasheet: 0.33.0's `num_prefill_lookahead_tokens`; a model
with several modules of MTP, each of which reads one token further, is taken for one with one)."""
EVIDENCE = "one served image took 0.13 s with its prompt, where this makes 0.09"


def encoder_limits(request: PoolRequest, serving: Serving) -> EncoderLimits:
    """Image tokens of a step and of the cache: the step's budget, or the largest image if that is longer."""
    tower, flags = request.arch.tower, request.flags
    longest = max(serving.tokens, tower.tokens if tower is not None else 0)
    drafts = request.speculation
    return EncoderLimits(
        longest,
        longest,
        whole_images=bool(flags.get("disable_chunked_mm_input")),
        received=request.encoded,
        ahead_tokens=int(drafts is not None and drafts.method in READS_AHEAD),
    )


def image_load(embeddings: Embeddings | None) -> ImageLoad | None:
    """What steps read of encoded images themselves, None where they have them before."""
    if embeddings is None or embeddings.sent:
        return None
    return ImageLoad(embeddings.token_bytes, FILE_BYTES_PER_S)


def images_of_pool(request: PoolRequest, version: Version, said: Said) -> Images:
    """What encoding takes; InputError for models and settings with which images are not served, or not modelled."""
    limits = request.flags.get("limit_mm_per_prompt") or {}
    if limits.get("image", 1) == 0:
        raise InputError(
            "limit_mm_per_prompt admits no image, and prompts hold images",
            where="deployment.engine_args.limit_mm_per_prompt",
            mend="admit some, or take workload.images out",
        )
    device = load_device(request.device_name)
    kernels = FLASH_3 if device.architecture == "hopper" else FLASH_4 if stacked_blackwell(device) else FLASH_2
    lacking = {"vLLM before 0.8": version.first_engine, "CPUs": request.device_kind == "cpu"}
    threads = int(request.flags.get("api_server_count") or 1) if request.role == "encode" else 1
    return images_of(request, kernels, lacking, EVIDENCE, said, threads=threads)


__all__ = ["FILE_BYTES_PER_S", "encoder_limits", "image_load", "images_of_pool"]
