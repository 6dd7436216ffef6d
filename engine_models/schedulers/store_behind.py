"""What schedulers have in common that write to a store, or read from one, behind what they keep."""

from __future__ import annotations

from engine_models.memory.tiered_radix import FurtherTier
from engine_models.parts.protocols import Scheduler
from engine_models.parts.tiers import TierKind


class UsesStore:
    """A scheduler with a store behind what it keeps."""

    @property
    def further(self) -> FurtherTier | None:
        """The store as it uses it, None without."""
        raise NotImplementedError

    def join(self, other: Scheduler, kind: TierKind) -> None:
        """As of a scheduler."""
        assert isinstance(other, UsesStore)
        mine, theirs = self.further, other.further
        if mine is not None and theirs is not None and mine.kind == kind:
            mine.join(theirs)

    def beside(self, other: Scheduler) -> None:
        """As of a scheduler."""
        assert isinstance(other, UsesStore)
        mine, theirs = self.further, other.further
        if mine is not None and theirs is not None:
            mine.beside(theirs)


__all__ = ["UsesStore"]
