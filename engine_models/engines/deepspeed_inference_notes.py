"""What a run with DeepSpeed-Inference says of its groups and of weights that are brought."""

from __future__ import annotations


def notes_of(
    rows: int, row_tokens: int, tokens: int, place: str, weights: int, rate: float, *, injected: bool, on_host: bool
) -> tuple[str, ...]:
    """Sentences on groups, kernels and the stream of weights."""
    kept = f"{row_tokens:,} tokens a row are set aside, a group whose padded prompts and answers need more fails"
    grows = f"above {tokens:,} tokens, padding included, a group fails for lack of memory"
    said = [
        f"generate in groups of up to {rows:,} waiting requests, padded to the longest, computed until the last ends; "
        + (kept if injected else grows),
        "its kernels are priced as vLLM's; "
        + ("launches of injected kernels likewise" if injected else "its modules are launched as those of transformers")
        + " (assumed, nobody measured them); it is a library: what stands before it takes no time here",
    ]
    if place != "none":
        source = "disk" if place == "nvme" else "host memory"
        said.append(
            f"ZeRO-Inference: {weights / 1e9:.1f} GB of weights come from {source} in every step, "
            f"at {rate / 1e9:g} GB/s (assumed): no step is shorter than {weights / rate:.2f} s"
            + (", and all keys and values that it attends to" if on_host else "")
        )
    return tuple(said)


__all__ = ["notes_of"]
