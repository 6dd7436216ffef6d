"""Images under vLLM: the budget and the cache of its vision tower, what encoding takes, and the time of the front end.

Source: vLLM 0.33.0's `v1/core/encoder_cache_manager.py` (`compute_mm_encoder_budget`) and `v1/worker/gpu_model_runner.py`.
"""

from __future__ import annotations

from engine_models.cost.images import MULTIPROCESSORS, PIXEL_S, Images, kernels_of
from engine_models.declaration import PoolRequest, Said
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version
from engine_models.model.blocks import Vision
from engine_models.refusals import none_of
from engine_models.schedulers.encoding import EncoderLimits
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError


def encoder_limits(request: PoolRequest, version: Version, serving: Serving) -> EncoderLimits:
    """Image tokens of a step and of the cache: the step's budget, or the largest image if that is longer."""
    tower, flags = request.arch.tower, request.flags
    longest = max(serving.tokens, tower.tokens if tower is not None else 0)
    return EncoderLimits(longest, longest, whole_images=bool(flags.get("disable_chunked_mm_input")))


def images_of(request: PoolRequest, version: Version, said: Said) -> Images:
    """What encoding takes; InputError for models and settings with which images are not served, or not modelled."""
    vision = _vision(request)
    limits = request.flags.get("limit_mm_per_prompt") or {}
    if limits.get("image", 1) == 0:
        raise InputError(
            "limit_mm_per_prompt admits no image, and prompts hold images",
            where="deployment.engine_args.limit_mm_per_prompt",
            mend="admit some, or take workload.images out",
        )
    lacking = {
        "vLLM before 0.8": version.first_engine,
        "CPUs": request.device_kind == "cpu",
        "LoRA adapters": request.lora is not None,
        "structured output": request.structured,
    }
    none_of(lacking, "images with {}: not modelled yet", "workload.images", mend="remove the key")
    device = load_device(request.device_name)
    peaks = device.peak_flops_per_s
    peak = peaks.get("bf16") or peaks.get("fp16") or next(iter(peaks.values()))
    kernels = kernels_of(device)
    said.notes.append(
        f"images: encoded before the step by a tower of {vision.layers} layers, a plain vision transformer, without CUDA graphs "
        f"(attention's median error on the tables {kernels.median_error_percent:g} %; one served image took 0.13 s with its "
        "prompt, where this makes 0.09)"
    )
    said.notes.append(
        "images: each of its own, the last of a prompt's tokens; the front end takes "
        f"{PIXEL_S * vision.pixels * 1e6:.3g} us a token of an image ({PIXEL_S * 1e9:g} ns a pixel) in one thread (assumed, "
        "from one report)"
    )
    count = int(device.multiprocessors.value) if device.multiprocessors else MULTIPROCESSORS
    return Images(vision, kernels, peak.value, count)


def image_token_s(request: PoolRequest) -> float:
    """Time of the front end's one thread for a token of an image."""
    return PIXEL_S * _vision(request).pixels


def _vision(request: PoolRequest) -> Vision:
    """The tower of the pool's model; InputError where it has none that is known."""
    arch = request.arch
    if arch.vision is not None:
        return arch.vision
    if request.flags.get("language_model_only"):
        raise InputError(
            "prompts hold images, and language_model_only leaves the vision tower out",
            where="deployment.engine_args.language_model_only",
            mend="remove it, or workload.images",
        )
    if any(extra.part == "vision" for extra in arch.extras):
        raise InputError(
            f"of how many patches the vision tower of {arch.name} makes a token its config does not say",
            where="workload.images",
            mend="give the model's own config.json as `model`, or a model whose vision_config has spatial_merge_size "
            "(Qwen2-VL and later, GLM-4.5V, Mistral Small 3.1)",
        )
    raise InputError(
        f"{arch.name} takes no images: its config has no vision_config",
        where="workload.images",
        mend="use a model with a vision tower, such as Qwen/Qwen3-VL-8B-Instruct, or remove workload.images",
    )


__all__ = ["encoder_limits", "image_token_s", "images_of"]
