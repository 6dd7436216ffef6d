"""Prompts of a given length that no server has seen: token ids drawn from the vocabulary, or words where it takes text only."""

from __future__ import annotations

from hardware_profiles.records import dataclass
from simulator.endpoint.client import Prompt
from simulator.workload.streams import stream

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour"
)
WORDS = _TEXT.split()
DRAWN_WORDS = 8
"""Words at the beginning of a text that are drawn: 60 to the 8th of such beginnings."""


@dataclass(frozen=True)
class Wording:
    """How prompts are made: `ids` are bounds of the ids that are drawn, None for text.

    Of a number of words a server makes fixed_tokens + tokens_per_word * words tokens; the first has what a chat template adds.
    `seed` is another one in every session: a server may remember the prompts of the last.
    """

    seed: int
    ids: tuple[int, int] | None
    fixed_tokens: float = 0.0
    tokens_per_word: float = 1.0

    @property
    def fewest(self) -> int:
        """Tokens of the shortest prompt."""
        return 1 if self.ids is not None else int(self.fixed_tokens + self.tokens_per_word) + 1

    @property
    def slack_tokens(self) -> int:
        """By how much a server's count may be another than ours: what it adds to ids, and how unequal words are (assumed)."""
        return 16 if self.ids is not None else 64

    def units(self, segment: str, count: int) -> list[int]:
        """The first `count` of a segment's ids (or numbers of words); equal segments are equal.

        Words are drawn as far as they have to tell segments apart, then come in turn, so that equal counts make equal tokens.
        """
        low, high = self.ids or (0, len(WORDS))
        drawn_count = count if self.ids is not None else min(count, DRAWN_WORDS)
        drawn: list[int] = stream(self.seed, f"prompt {segment}").integers(low, high, size=drawn_count).tolist()
        return drawn + [number % high for number in range(count - drawn_count)]

    def words(self, tokens: int) -> int:
        """Units that make so many tokens."""
        return tokens if self.ids is not None else max(1, round((tokens - self.fixed_tokens) / self.tokens_per_word))

    def prompt(self, units: list[int]) -> Prompt:
        """What is sent."""
        return units if self.ids is not None else " ".join(WORDS[unit] for unit in units)

    def private(self, segment: str, tokens: int) -> Prompt:
        """A prompt of so many tokens that shares its beginning with no other segment's."""
        return self.prompt(self.units(segment, self.words(tokens)))


def ids_of(vocabulary: int) -> tuple[int, int]:
    """Bounds of ids that are ordinary tokens (assumed: bytes and special tokens stand in the first or the last tenth)."""
    return vocabulary // 10, max(vocabulary // 10 + 1, vocabulary * 9 // 10)


def wording_of(seed: int, few: tuple[int, int], many: tuple[int, int]) -> Wording:
    """From two texts, each (words, tokens that the server counted)."""
    per_word = (many[1] - few[1]) / (many[0] - few[0])
    return Wording(seed, None, few[1] - per_word * few[0], per_word)


__all__ = ["Wording", "ids_of", "wording_of"]
