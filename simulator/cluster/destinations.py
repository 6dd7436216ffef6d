"""Which pools a request may go to: those that serve its model and take prompts of its length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware_profiles.records import dataclass
from simulator.workload.columns import IntArray, Workload

NOWHERE = -1
"""The group of a request that no pool is for."""


@dataclass(frozen=True)
class Takes:
    """What a pool is given: requests for a model, by number, with prompts of `least` to `most` tokens (None: of any length)."""

    model: int
    least: int = 0
    most: int | None = None

    def takes(self, model: int, prompt_tokens: int) -> bool:
        """Whether the pool is given such a request."""
        return model == self.model and self.least <= prompt_tokens and (self.most is None or prompt_tokens <= self.most)


class Destinations:
    """The groups of pools that requests may go to.

    Parameters
    ----------
    pools : what each takes.
    models : the model of each class of requests, by number.
    """

    def __init__(self, pools: Sequence[Takes], models: Sequence[int]) -> None:
        self._models = np.array(models, np.int64)
        found: dict[tuple[int, ...], int] = {}
        self._bounds: dict[int, tuple[IntArray, IntArray]] = {}
        for model in sorted({pool.model for pool in pools}):
            mine = [pool for pool in pools if pool.model == model]
            ends = {pool.most + 1 for pool in mine if pool.most is not None}
            starts = sorted({0, *(pool.least for pool in mine), *ends})
            groups = [tuple(i for i, pool in enumerate(pools) if pool.takes(model, start)) for start in starts]
            numbers = [found.setdefault(group, len(found)) if group else NOWHERE for group in groups]
            self._bounds[model] = np.array(starts, np.int64), np.array(numbers, np.int64)
        self.groups = tuple(found)
        """The pools of each group."""

    def of(self, workload: Workload) -> IntArray:
        """The group of each request."""
        out = np.full(len(workload), NOWHERE, np.int64)
        models = self._models[workload.class_index]
        for model, (starts, groups) in self._bounds.items():
            rows = np.flatnonzero(models == model)
            out[rows] = groups[np.searchsorted(starts, workload.prompt_tokens[rows], side="right") - 1]
        return out


def overlap(groups: Sequence[Sequence[int]]) -> bool:
    """Whether a pool is in several groups."""
    listed = [pool for group in groups for pool in group]
    return len(listed) > len(set(listed))
