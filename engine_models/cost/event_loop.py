"""The process of a server that takes requests in and sends tokens out: what its one event loop spends on each."""

from __future__ import annotations

from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class EventLoop:
    """Times of an event loop [s] on the core where they were measured; it does one thing after the other.

    request_s : to take in a request (HTTP, validation, sampling parameters); chat_s : more, where the prompt is made of a chat;
        prompt_token_s : more, for each token of the prompt.
    hand_over_s : to hand a request to the scheduler, once all that came in with it have been taken in.
    step_s, row_s : to send the tokens of a step, and those of each row; merged_row_s : of a row whose token joins others of it
        that still wait to be sent.
    idle_factor : how many times as long `request_s`, `chat_s` and `hand_over_s` are for a request that finds the loop idle (cold
        caches, a core that sleeps).
    share : part of all requests and rows that one process has: 1 over their number, or ranks over processes.
    speed : of the host's core, relative to that of the measurement.
    """

    request_s: float
    chat_s: float
    prompt_token_s: float
    hand_over_s: float
    step_s: float
    row_s: float
    merged_row_s: float
    idle_factor: float
    share: float = 1.0
    speed: float = 1.0

    def lone_s(self, *, chat: bool) -> float:
        """What a short request spends in it that is alone, on its host."""
        taken_s = self.idle_factor * (self.request_s + self.hand_over_s + (self.chat_s if chat else 0.0))
        return (taken_s + self.step_s + self.row_s) / self.speed
