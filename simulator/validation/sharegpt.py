"""Lengths of the pairs that serving benchmarks draw from ShareGPT, where a report tells their means alone.

`vllm bench serve` and its kin take the first two messages of a record of `ShareGPT_V3_unfiltered_cleaned_split.json` as prompt
and answer, whoever spoke first, and keep pairs of at least 4 tokens each, prompts of at most 1,024 and 2,048 together
(`is_valid_sequence` in vLLM's `benchmarks/datasets`). Records are pieces of conversations, so that more than half of the pairs
are an assistant's answer and what the user wrote next: two answers in five are below 60 tokens, unlike those of a law with one
hump. Users' messages and the spread of answers are published; the answers' mean and the share of pairs that begin with one
follow from the means of both lengths.
"""

from __future__ import annotations

import numpy as np

from simulator.validation.unflushed import Lengths
from simulator.workload.spec import WorkloadSpec
from simulator.workload.synthetic import LognormalLength, NormalLength

MESSAGE_QUANTILES = {0.0: 4, 0.25: 14, 0.5: 28, 0.75: 74, 0.9: 336, 0.95: 500, 0.99: 928, 1.0: 1024}
"""Tokens of a user's message. Source: mean 108, median 28, 90th percentile 336, 99th 928, most 1,024 over the 52,229 pairs of
the file that begin with a user (a public report with Kimi-K3's tokenizer); quartiles as in project-etalon's ShareGPT list (16
and 74 about its median of 31), the 95th percentile so that the mean holds. Read 2026-11-30; derived."""
ANSWER_SHAPE = 2.8
"""Shape of a gamma law of an answer's tokens: project-etalon's list has answers of mean 435 and deviation 264. Derived."""
ANSWER_TOKENS = 307.0
"""Mean of an answer before pairs are left out. With `ANSWER_FIRST` it gives the published means of 1,000 pairs (prompts 215,
answers 200: GPUStack's performance lab, three tokenizers); prompts then have a median of 169, and another report tells 136.
Derived, 2026-11-30."""
ANSWER_FIRST = 0.54
"""Share of pairs whose prompt is an assistant's answer; derived as above."""
_DRAWN = 20_000
"""Pairs of which a load's are chosen, evenly by the length of their answers, so that two loads differ little by chance."""


def pairs(count: int, prompt_tokens: float, answer_tokens: float) -> Lengths:
    """[prompt, answer] tokens of so many requests in order, with these means."""
    rng = np.random.default_rng(0)
    levels = list(MESSAGE_QUANTILES)
    message = np.interp(rng.random(_DRAWN), levels, list(MESSAGE_QUANTILES.values()))
    answer = rng.gamma(ANSWER_SHAPE, ANSWER_TOKENS / ANSWER_SHAPE, _DRAWN)
    first = rng.random(_DRAWN) < ANSWER_FIRST
    both = np.column_stack([np.where(first, answer, message), np.where(first, message, answer)])
    valid = both[(both.min(axis=1) >= 4) & (both[:, 0] <= 1024) & (both.sum(axis=1) <= 2048)]
    by_answer = valid[np.argsort(valid[:, 1], kind="stable")]
    chosen = by_answer[((np.arange(count) + 0.5) / count * len(by_answer)).astype(np.int64)]
    scaled = rng.permutation(chosen) * (np.array([prompt_tokens, answer_tokens]) / chosen.mean(axis=0))
    return tuple((int(prompt), int(output)) for prompt, output in np.maximum(1, np.rint(scaled)))


def like(load: WorkloadSpec) -> Lengths:
    """Pairs with the means of a load's laws, as many as it sends; none where it has no such laws or no number of requests."""
    means = [of.mean for of in (load.prompt_tokens, load.output_tokens) if isinstance(of, NormalLength | LognormalLength)]
    return pairs(load.requests, *means) if load.requests and len(means) == 2 else ()
