"""How a checkpoint asks to be sampled, where that costs device time.

Servers that follow the checkpoint's generation_config.json (vLLM's `generation_config: auto`, the default) sample with its
top-p or top-k unless the client says otherwise. Truncated sampling sorts the logits of every row: over a vocabulary of
128,000 that is several passes over hundreds of megabytes a step. Greedy or plain sampling does not sort.
"""

from __future__ import annotations

# Families whose generation_config.json truncates. Kind: assumed (from memory of the published files, 2026-11,
# unconfirmed); the step times measured for Llama-2, Llama-3.1 and Llama-4 carry the extra cost, those of Mixtral,
# CodeLlama, Mistral-Nemo and Yi do not.
TRUNCATING = (
    "llama-2",
    "llama-3",
    "meta-llama-3",
    "llama-4",
    "qwen2.5",
    "qwen3",
    "qwq",
    "deepseek-r1",
    "deepseek-v3.1",
    "gemma-3",
    "glm-4",
    "minimax-m2",
)


def truncates(model: str) -> bool:
    """Whether the checkpoint's own generation_config.json asks for top-p or top-k sampling."""
    name = model.lower().rsplit("/", 1)[-1]
    return name.startswith(TRUNCATING)
