"""Images under SGLang: the cache of what its vision tower has made, and the kernels of its attention."""

from __future__ import annotations

from engine_models.cost.images import EncoderKernels, Images
from engine_models.declaration import PoolRequest, Said
from engine_models.images import images_of
from hardware_profiles.device import load_device, stacked_blackwell
from hardware_profiles.errors import InputError

CACHE_BYTES = 100 << 20
"""kind: datasheet (SGLANG_VLM_CACHE_SIZE_MB, 100 by default, SGLang 0.5.23's `environ.py`)."""
LOADERS = 4
"""Threads of an encode server that receive and decode (datasheet: `SGLANG_ENCODER_MM_LOAD_WORKERS`, as above). Four 1080p images
of a request took 2.05 s to the first token over Mooncake, Qwen3-VL-8B on two H20, where this makes 2.7 (pull request 30398)."""
FLASH_3 = EncoderKernels(0.45, 12e-6, 16, 12.0)
FLASH_4 = EncoderKernels(0.35, 12e-6, 16, 15.0)
TRITON = EncoderKernels(0.25, 8e-6, 64, 34.0)
"""Attention of SGLang's towers on Hopper, on Blackwell in data centres, elsewhere (`layers/attention/vision.py`). kind: fitted,
2026-11, three numbers a kernel, to the encoder attention of SGLang 0.5.14, 30 shapes of heads on H100, H200, B200, GB200, L40S
and RTX PRO 6000 (ai-dynamo/aiconfigurator)."""
EVIDENCE = "one server took 201 to 684 ms to the first token of one to five images of 720p, where this makes 124 to 540 on H100"


def image_cache_tokens(request: PoolRequest) -> int:
    """Image tokens that the cache has room for."""
    tower = request.arch.tower
    return CACHE_BYTES // (2 * request.arch.hidden * (tower.outputs if tower is not None else 1))


def images_of_pool(request: PoolRequest, said: Said) -> Images:
    """What encoding takes; InputError for models and settings with which images are not served, or not modelled."""
    if request.flags.get("language_only") and request.role != "encode":
        raise InputError(
            "prompts hold images, and a server with --language-only has no tower: others have to encode",
            where="deployment.engine_args.language_only",
            mend="add a pool of role: encode, or remove the flag",
        )
    device = load_device(request.device_name)
    kernels = FLASH_3 if device.architecture == "hopper" else FLASH_4 if stacked_blackwell(device) else TRITON
    return images_of(request, kernels, {}, EVIDENCE, said, LOADERS if request.role == "encode" else 0)


__all__ = ["image_cache_tokens", "images_of_pool"]
