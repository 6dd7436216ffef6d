"""What engines ask of a pool whose prompts hold images: its vision tower, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping

from engine_models.cost.images import PIXEL_S, SCALE_PIXEL_S, EncoderKernels, ImageHost, Images
from engine_models.declaration import PoolRequest, Said
from engine_models.model.blocks import Vision
from engine_models.refusals import none_of
from hardware_profiles.errors import InputError


def images_of(
    request: PoolRequest,
    kernels: EncoderKernels,
    lacking: Mapping[str, bool],
    evidence: str,
    said: Said,
    loaders: int = 0,
    threads: int = 1,
) -> Images:
    """What encoding takes with these kernels; InputError for models without a known tower, and for what is `lacking`.

    `evidence` : in words, what served images say of it. `loaders` : threads of a server that only encodes which load the images
    of a step before it, in the step (0: its front end does, in so many `threads`).
    """
    vision = vision_of(request)
    none_of(lacking, "images with {}: not modelled yet", "workload.images", mend="remove the key")
    said.notes.append(
        f"images: encoded before the step by a tower of {vision.layers} layers, a plain vision transformer, without CUDA graphs "
        f"(attention's median error on the tables {kernels.median_error_percent:g} %; {evidence})"
    )
    by = "a batch's images, before it is encoded, take" if loaders else "the front end takes"
    shared = "one thread" if threads == 1 else f"each of {threads} threads"
    if loaders:
        shared = f"one thread, {(PIXEL_S - SCALE_PIXEL_S) * 1e9:g} ns of it in {loaders}"
    said.notes.append(
        f"images: each of its own, the last of a prompt's tokens; {by} {PIXEL_S * vision.pixels * 1e6:.3g} us a token of an "
        f"image ({PIXEL_S * 1e9:g} ns a pixel) in {shared} (assumed, from one report)"
    )
    return Images(vision, kernels, ImageHost(vision.pixels, loaders) if loaders else None)


def image_token_s(request: PoolRequest) -> float:
    """Time of the front end's one thread for a token of an image; 0 where prompts hold none."""
    return PIXEL_S * vision_of(request).pixels if request.images or request.role == "encode" else 0.0


def vision_of(request: PoolRequest) -> Vision:
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
        f"{arch.name} takes no images: its config has no vision_config, as far as it is known here",
        where="workload.images",
        mend="use a model with a vision tower, such as Qwen/Qwen3-VL-8B-Instruct, or give the model's own config.json as "
        "`model`, or remove workload.images",
    )


__all__ = ["image_token_s", "images_of", "vision_of"]
