"""LoRA adapters of one rank: which are on the device, and which a batch reads; and which of its rows a grammar constrains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Protocol

from engine_models.parts.batch import AdapterUse, Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class AdapterLimits:
    """How many adapters there may be.

    on_device : that the device holds, and that a batch may name.
    on_host : that the host's memory holds besides, None for all.
    counts_model : whether requests that name none take a place among those of a batch; it goes to an adapter only where a batch
        names as many as there are places.
    """

    on_device: int
    on_host: int | None = None
    counts_model: bool = False


NO_ADAPTERS = AdapterLimits(1)
"""Where requests name none."""


class Limited(Protocol):
    """Adapters of a pool, as far as their limits."""

    @property
    def limits(self) -> AdapterLimits: ...


def limits_in(adapters: Limited | None, *, structured: bool) -> AdapterLimits | None:
    """How many adapters a step may name; None where rows need not be told apart, by adapters or by masks (`structured`)."""
    return adapters.limits if adapters is not None else NO_ADAPTERS if structured else None


class AdapterSlots:
    """The adapters that one rank holds; the one used longest ago goes first."""

    def __init__(self, limits: AdapterLimits) -> None:
        self.limits = limits
        self._device: OrderedDict[int, None] = OrderedDict()
        self._host: OrderedDict[int, None] = OrderedDict()

    def fits(self, adapter: int, served: Collection[int]) -> bool:
        """Whether a batch that names `served` adapters may name this one too (0: none)."""
        if adapter in served or (not adapter and not self.limits.counts_model):
            return True
        return len(served) - (0 in served and not self.limits.counts_model) < self.limits.on_device

    def use(self, adapters: Iterable[int]) -> tuple[int, int]:
        """Note what a batch names, which the device then holds; return how many are copied to it, and how many of these are read
        from disk."""
        copied = read = 0
        wanted = sorted(set(adapters) - {0})
        for adapter in wanted:
            if adapter in self._device:
                self._device.move_to_end(adapter)
        for adapter in wanted:
            read += self._fetch(adapter)
            if adapter not in self._device:
                copied += 1
                self._device[adapter] = None
        places = max(len(wanted), self.limits.on_device - self.limits.counts_model)
        while len(self._device) > places:
            self._device.popitem(last=False)
        return copied, read

    def _fetch(self, adapter: int) -> bool:
        """Bring an adapter into the host's memory; whether it had to be read."""
        most = self.limits.on_host
        if most is None:
            return False
        missing = adapter not in self._host
        self._host[adapter] = None
        self._host.move_to_end(adapter)
        if len(self._host) > most:
            self._host.popitem(last=False)
        return missing


class AdaptedDecodes(DecodeSet):
    """The decoding rows, with a count of those that name each adapter, and of those that a grammar constrains."""

    def __init__(self, block_tokens: int, windows: tuple[int, ...] = ()) -> None:
        super().__init__(block_tokens, windows)
        self.adapters: dict[int, int] = {}
        self.masked_rows = self.rows_of_model = 0

    def join(self, seq: Sequence) -> None:
        """As of the base."""
        super().join(seq)
        self.masked_rows += seq.masked
        if seq.adapter:
            self.adapters[seq.adapter] = self.adapters.get(seq.adapter, 0) + 1
        else:
            self.rows_of_model += 1

    def leave(self, seq: Sequence) -> None:
        """As of the base."""
        super().leave(seq)
        self.masked_rows -= seq.masked
        if not seq.adapter:
            self.rows_of_model -= 1
        elif self.adapters[seq.adapter] == 1:
            del self.adapters[seq.adapter]
        else:
            self.adapters[seq.adapter] -= 1

    def named(self) -> set[int]:
        """The adapters of all rows, 0 among them where a row names none."""
        found = set(self.adapters)
        if self.rows_of_model:
            found.add(0)
        return found

    def use(self, others: Iterable[tuple[Sequence, int]] = (), slots: AdapterSlots | None = None) -> AdapterUse | None:
        """What a batch of all rows and `others`, with their tokens, does with adapters; None for nothing.

        With `slots` they are brought to the device.
        """
        named, tokens = set(self.adapters), self.count - self.rows_of_model
        for seq, number in others:
            if seq.adapter:
                named.add(seq.adapter)
                tokens += number
        if not named:
            return None
        copied, read = slots.use(named) if slots is not None else (0, 0)
        return AdapterUse(len(named), tokens, copied, read)


class MaskedDecodes(AdaptedDecodes):
    """The decoding rows, whose steps say how many of them a grammar constrains."""

    __slots__ = ()

    def serve(self, batch: Batch) -> None:
        """As of the base."""
        super().serve(batch)
        batch.masked_rows = self.masked_rows


class NamingDecodes(MaskedDecodes):
    """The decoding rows, whose steps say besides which adapters they read; all adapters are on the device."""

    __slots__ = ()

    def serve(self, batch: Batch) -> None:
        """As of the base."""
        super().serve(batch)
        batch.adapters = self.use()


def used_by(prompts: Iterable[tuple[Sequence, int]]) -> AdapterUse | None:
    """What prompts, with the tokens of each that are computed, read of adapters that are all on the device; None for nothing."""
    naming = [(seq.adapter, tokens) for seq, tokens in prompts if seq.adapter]
    return AdapterUse(len({adapter for adapter, _ in naming}), sum(tokens for _, tokens in naming)) if naming else None


__all__ = [
    "NO_ADAPTERS",
    "AdaptedDecodes",
    "AdapterLimits",
    "AdapterSlots",
    "MaskedDecodes",
    "NamingDecodes",
    "limits_in",
    "used_by",
]
