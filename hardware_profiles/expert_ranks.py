"""How many rows the most loaded of the ranks that share a layer's experts has: all wait for it.

A rank's rows are a sum over its experts: of the choices of the tokens, each of different experts, and of the experts'
popularities (:data:`~hardware_profiles.kernel_physics.POPULARITY_SHAPE`). Experts lie on the ranks in order, unless a balancer
places them: it copies the most popular ones and deals all to the ranks by their load, so that what is left of the popularities
is what it cannot even out, if they last. The choices of one step's tokens it does not know.

Nothing is fitted to balanced ranks. DeepSeek-R1 over 32 ranks of GB200, 4,096 tokens a step and 32 copies, has 0.109 more than
the mean rank on the most loaded one in the mean over layers and steps, 0.115 over 36 ranks (TensorRT-LLM, `tech_blog/blog4`,
table 1); 0.08 is predicted. In order it had 1.56 with that load, translations, where 0.53 is predicted: tokens of one kind crowd
more than the law of popularities has it. This is one page; two others say the same of the direction alone: Kimi-K3 over 16 ranks,
1.069 times the mean rank's rows in order and 1.008 balanced (vllm-project/vllm#50647; over how many layers and steps is not
told), and DeepSeek-V4-Pro over eight ranks without copies, 16.7 % more prompts a second (ROCm/ATOM#1210), where the law, at 1.14
in order, has at most 14 %.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hardware_profiles.kernel_physics import POPULARITY_SHAPE, Array, Number, as_array


class Deal(NamedTuple):
    """How tokens and experts are dealt to the ranks.

    spread : variance of the rows that a token gives a rank, over that of free choices: more where they are limited to groups.
    copies : experts held besides, over all ranks. balanced : whether a balancer places them all by their popularity.
    """

    spread: float = 1.0
    copies: int = 0
    balanced: bool = False


EVEN = Deal()
"""Free choices, every expert once, in order."""


def loaded_rank(tokens: Array, topk: Number, experts: Number, ranks: int, deal: Deal = EVEN) -> Array:
    """Expected rows of the most loaded of `ranks` ranks that share the experts, over the mean rank's.

    With n ranks and m rows on the mean one the variance of a rank's rows, over m squared, is ``(1 - 1/n) (s (E - topk) / (E - 1)
    / m + n / (a E))``, s being `deal.spread` and the last term that of popularities of experts that lie in order. Balanced, what
    is left of these is a share of the mean known by itself (:func:`balanced_excess`). The largest of n lies about ``Phi**-1((n -
    0.375) / (n + 0.25))`` standard deviations above the mean (Blom 1958).

    >>> from hardware_profiles.kernel_physics import as_array
    >>> [round(float(loaded_rank(as_array(4096), 8, 256, 32, deal)), 2) for deal in (EVEN, Deal(copies=32, balanced=True))]
    [1.51, 1.07]
    """
    from statistics import NormalDist

    n, e = np.float64(ranks), np.float64(experts)
    mean = np.maximum(tokens * topk / n, 1e-9)
    most = NormalDist().inv_cdf((n - 0.375) / (n + 0.25))
    choices = deal.spread * (e - topk) / max(float(e) - 1.0, 1.0) / mean
    loaded = 1.0 + most * np.sqrt(np.maximum((1.0 - 1.0 / n) * (choices + n / (POPULARITY_SHAPE * e)), 0.0))
    if deal.balanced:
        evened = 1.0 + balanced_excess(round(float(e)), deal.copies, ranks)
        loaded = np.minimum(loaded, evened + most * np.sqrt(np.maximum((1.0 - 1.0 / n) * choices, 0.0)))
    return np.minimum(loaded, n)


@lru_cache(maxsize=256)
def balanced_excess(experts: int, copies: int, ranks: int) -> float:
    """What the most loaded rank has above the mean, over it, where a balancer knows the experts' popularities.

    These are the quantiles of their law. Copies go one by one to the expert with most rows a copy, the heaviest of all then to
    the rank with fewest rows that has a place left: the global policy of DeepSeek's balancer, which vLLM and SGLang took over
    (``rebalance_experts``). Every rank has as many places.

    >>> [round(balanced_excess(256, *where), 2) for where in ((0, 8), (0, 64), (64, 64), (0, 256))]
    [0.0, 0.1, 0.01, 3.25]
    """
    places = -(-(experts + copies) // ranks)
    load = [(-popularity, 1) for popularity in _popularities(experts)]
    heapq.heapify(load)
    for _ in range(copies):
        each, held = load[0]
        heapq.heapreplace(load, (each * held / (held + 1), held + 1))
    pieces = sorted((-each for each, held in load for _ in range(held)), reverse=True)
    open_ranks = [(0.0, rank) for rank in range(ranks)]
    room, most = [places] * ranks, 0.0
    for piece in pieces:
        rows, rank = heapq.heappop(open_ranks)
        most, room[rank] = max(most, rows + piece), room[rank] - 1
        if room[rank]:
            heapq.heappush(open_ranks, (rows + piece, rank))
    return most * ranks / sum(pieces) - 1.0


def _popularities(experts: int) -> list[float]:
    """Quantiles at the middle of equal parts of the gamma law of shape a, which is ``1 - (1 + a r) exp(-a r)`` at 2."""
    r = np.linspace(0.0, 20.0, 20_001)
    below = 1.0 - (1.0 + POPULARITY_SHAPE * r) * np.exp(-POPULARITY_SHAPE * r)
    return [float(at) for at in np.interp((np.arange(experts) + 0.5) / experts, below, as_array(r))]


__all__ = ["EVEN", "Deal", "balanced_excess", "loaded_rank"]
