"""How unevenly ranks are loaded by tokens that choose groups of experts first, and which share of them a token reaches."""

from __future__ import annotations

from math import comb


def group_spread(experts: int, topk: int, groups: int, chosen: int, ranks: int) -> float:
    """Variance of the rows that a token gives one of `ranks` ranks if it chooses groups of experts first, over free choice.

    It takes `topk` experts of `chosen` of all `groups`, equal parts of the experts; a rank holds whole groups or a part of one.
    J of the rank's groups are chosen, and each part holds the share c of the experts that the token may take, so that it takes
    topk J c of them in the mean (J and what it takes are hypergeometric).

    >>> round(group_spread(256, 8, 8, 4, 8), 2), round(group_spread(256, 8, 8, 4, 32), 2), group_spread(256, 8, 1, 1, 8)
    (2.01, 1.21, 1.0)
    """
    if groups <= chosen or ranks < 2:
        return 1.0
    own, pool = max(1.0, groups / ranks), experts * chosen / groups
    c = experts / max(groups, ranks) / pool
    mean = own * chosen / groups
    variance = mean * (1.0 - chosen / groups) * (groups - own) / (groups - 1.0)
    within = topk * (c * mean - c * c * (variance + mean * mean)) * (pool - topk) / (pool - 1.0)
    free = topk / ranks * (1.0 - 1.0 / ranks) * (experts - topk) / (experts - 1.0)
    return (within + (topk * c) ** 2 * variance) / free


def reached_share(experts: int, topk: int, groups: int, chosen: int, ranks: int) -> float:
    """Share of `ranks` ranks that hold an expert of a token, in the mean, which takes them as in :func:`group_spread`.

    Of J of a rank's groups chosen, each with the share c of the experts that the token may take, it misses all with probability
    ``(1 - J c) ** topk``; a rank that holds a part of a group has it with J = 1.

    >>> [round(reached_share(256, 8, 8, *choice), 2) for choice in ((8, 8), (4, 8), (4, 32), (4, 1))]
    [0.66, 0.45, 0.2, 1.0]
    """
    if ranks < 2:
        return 1.0
    if groups <= chosen:
        return 1.0 - (1.0 - 1.0 / ranks) ** topk
    own, c = max(1, round(groups / ranks)), experts / max(groups, ranks) / (experts * chosen / groups)
    ways = comb(groups, chosen)
    most = min(own, chosen)
    return sum(comb(own, j) * comb(groups - own, chosen - j) / ways * (1.0 - (1.0 - j * c) ** topk) for j in range(1, most + 1))
