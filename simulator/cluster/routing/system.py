"""What a router product declares: its flags with their defaults, and how a policy is made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import field
from random import Random

from engine_models.declaration import Limits
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.cluster.routing.policy import Policy

Value = bool | int | float | str | tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class Flag:
    """A flag: its own name in snake_case, its default, whose type its values have, and what they may be.

    `absent` allows null, of the type of `like` otherwise.
    """

    name: str
    default: Value
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    like: Value = None

    def checked(self, value: object, where: str) -> Value:
        """A value that the flag may have.

        Raises
        ------
        InputError : it may not.
        """
        kind = self.default if self.default is not None else self.like
        flag = where.rpartition(".")[2]
        if value is None and self.default is None:
            return None
        if self.choices:
            if value in self.choices:
                return str(value)
            raise InputError(
                f"`{flag}` is {value!r}, not one of its choices",
                where=where,
                mend=f"one of {', '.join(self.choices)}{_nearest(str(value), self.choices)}",
            )
        if isinstance(kind, bool):
            if isinstance(value, bool):
                return value
            raise InputError(f"`{flag}` is {value!r}, not true or false", where=where, mend="true or false")
        if isinstance(kind, str):
            if isinstance(value, str) and value:
                return value
            raise InputError(f"`{flag}` is {value!r}, not a text", where=where, mend="give a name")
        whole = isinstance(kind, int)
        right = isinstance(value, int | float) and not isinstance(value, bool) and value == value
        if not right or (whole and not isinstance(value, int)):
            raise InputError(
                f"`{flag}` is {value!r}, not a {'whole ' if whole else ''}number",
                where=where,
                mend=f"such as {kind}",
            )
        assert isinstance(value, int | float)
        low, high = self.low, self.high
        if (
            (low is not None and value < low)
            or (high is not None and value > high)
            or abs(value) == float("inf")
        ):
            upper = f" and at most {high:g}" if high is not None else ""
            raise InputError(
                f"`{flag}` is {value!r}, out of range", where=where, mend=f"at least {low or 0:g}{upper}"
            )
        return value


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


@dataclass(frozen=True)
class Flags:
    """Values of all flags of a system."""

    values: Mapping[str, Value]

    def number(self, name: str) -> float:
        """A flag that is a number."""
        value = self.values[name]
        assert isinstance(value, int | float)
        return value

    def maybe(self, name: str) -> float | None:
        """A flag that is a number or null."""
        return None if self.values[name] is None else self.number(name)

    def word(self, name: str) -> str:
        """A flag that is a word."""
        return str(self.values[name])

    def weights(self, name: str) -> tuple[tuple[str, float], ...]:
        """A flag that gives weights to names."""
        value = self.values[name]
        assert isinstance(value, tuple)
        return value

    def on(self, name: str) -> bool:
        """A flag that is true or false."""
        return self.values[name] is True


MakesPolicy = Callable[[Flags, int, Random, Series[str] | None], Policy]
"""Makes the policy of servers without a role: flags, workers, random source, and the workers' names where they are known."""
MakesPaired = Callable[[str, Flags, int, Random, Series[str] | None], Policy]
"""Makes the policy of servers of a role, given its name first."""


@dataclass(frozen=True)
class RouterSystem:
    """A router product.

    Parameters
    ----------
    version : the release whose behaviour this is.
    flags : those that are modelled.
    policy, paired : make its policies, for servers without a role and with one.
    policy_flag : the flag that names the policy.
    key_headers : headers that name a session, the first that is there.
    roles : policies by role, where these are of different kinds; such a system asks servers in turn or at once, as they expect.
    holds_prefill : whether a prefill server counts as busy until the answer has ended, or only while it computes.
    decides : whether it chooses the decode server first, which may compute the prompt itself.
    keeps : whether, by its flags, it first asks which prompts decode servers compute themselves.
    breaks : whether it has circuit breakers.
    reads_characters : whether it matches characters of a text, else tokens.
    unmodelled : flags it has that change which worker is chosen or when, and are refused; why.
    tuned : flags that the servers' own limits say; where the flag `tuned_by` is on, if there is one. Of these `tuned_each` is the
        count of KV blocks, which each server says for itself.
    blocks_by : the flag of a KV block's tokens, where it hears of blocks. events_off : the flag by which it does, and what to
        give instead where an engine does not tell.
    read_by : the plugin that alone reads a flag, of those that other flags name.
    """

    version: str
    flags: tuple[Flag, ...]
    policy: MakesPolicy
    paired: MakesPaired | None = None
    roles: Mapping[str, MakesPolicy] = field(default_factory=dict)
    policy_flag: str = "policy"
    key_headers: tuple[str, ...] = ()
    holds_prefill: bool = True
    decides: bool = False
    keeps: Callable[[Flags], bool] | None = None
    breaks: bool = False
    reads_characters: bool = True
    unmodelled: Mapping[str, str] = field(default_factory=dict)
    tuned: Mapping[str, Callable[[Limits], int]] = field(default_factory=dict)
    tuned_by: str = ""
    tuned_each: str = ""
    blocks_by: str = ""
    events_off: tuple[str, str] = ("", "")
    read_by: Mapping[str, str] = field(default_factory=dict)

    def pairs(self, *, at_once: bool) -> bool:
        """Whether it sends a request to a prefill and a decode server, at once or in turn."""
        return bool(self.roles) or (self.paired is not None and self.holds_prefill == at_once)

    def read(self, given: Mapping[str, object], where: str, written: Mapping[str, str] | None = None) -> Flags:
        """The flags of a scenario, checked, with the defaults of those not given.

        `written` : other names under which some were given.

        Raises
        ------
        InputError : a flag that the system lacks or that is not modelled, or a value that it cannot have.
        """
        known = {flag.name: flag for flag in self.flags}
        for name in given:
            if name in self.unmodelled:
                raise InputError(
                    f"`{name}` is not modelled: {self.unmodelled[name]}",
                    where=f"{where}.{name}",
                    mend=f"remove `{name}`",
                )
            if name not in known:
                raise InputError(
                    f"no flag `{name}`{_nearest(name, [*known, *self.unmodelled])}",
                    where=f"{where}.{name}",
                    mend=f"flags: {', '.join(known)}",
                )
        values = {
            flag.name: flag.checked(given[flag.name], f"{where}.{(written or {}).get(flag.name, flag.name)}")
            if flag.name in given
            else flag.default
            for flag in self.flags
        }
        return Flags(values)


RETRIES = (
    Flag("retry_max_retries", 5, low=0),
    Flag("retry_initial_backoff_ms", 50, low=0),
    Flag("retry_max_backoff_ms", 30_000, low=0),
    Flag("retry_backoff_multiplier", 1.5, low=1.0),
    Flag("retry_jitter_factor", 0.2, low=0.0, high=1.0),
    Flag("disable_retries", False),
)
"""Retries of a request on another choice of the policy, as both Rust routers have them."""
BREAKERS = (
    Flag("cb_failure_threshold", 10, low=1),
    Flag("cb_success_threshold", 3, low=1),
    Flag("cb_timeout_duration_secs", 60, low=0),
    Flag("disable_circuit_breaker", False),
)
"""Circuit breakers of workers, as both Rust routers have them."""
