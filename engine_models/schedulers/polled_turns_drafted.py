"""Requests one after the other, with drafts: the rules of `polled_turns` where requests are served alone.

The thread takes a request and serves it to its end. Its prompt is computed in pieces, by the model and by a drafter, but for its
last token. Then each step drafts, a token a pass, and verifies: the first one begins with the prompt's last token, so that its
drafts may be among the first tokens that come. Never more is drafted than the client's limit leaves, the token behind the drafts
not counted. What was rejected is cut off both caches; what was accepted comes at once, with a token of the model's own unless
the limit is reached.

Steps are formed one by one. Source: behaviour of MLX LM 0.32 (`mlx_lm/server.py` lines 353 and 867 to 962; `mlx_lm/generate.py`
lines 465 to 645 at d78bf58e), read and compared with no recording.
"""

from __future__ import annotations

from engine_models.memory.prompt_copies import PromptCopies
from engine_models.schedulers.polled_turns import PolledTurnsScheduler, TurnRow, TurnRules


class DraftedTurnsScheduler(PolledTurnsScheduler):
    """`PolledTurnsScheduler` with `drafts` a step; `answer_tokens` is the limit of requests that state none."""

    def __init__(
        self,
        rules: TurnRules,
        copies: PromptCopies,
        *,
        drafts: int,
        answer_tokens: int,
        record_rows: bool = False,
    ) -> None:
        if not rules.alone:
            raise ValueError("with drafts requests are served alone")
        super().__init__(rules, copies, aggregate=False, record_rows=record_rows)
        self._drafts = drafts
        self._answer_tokens = answer_tokens
        self._got: dict[TurnRow, int] = {}  # tokens so far of the request in work

    def _plan_turn(self, thread_s: float) -> None:
        """Form the next call: a piece of the prompt, or drafts and their verification."""
        self._take_on()
        (row,) = self._rows.values()
        if self._prompting and row.segments != [1]:
            self._compute_pieces()
        else:
            if self._prompting:
                self._prompting.clear()
                self._kv.join(self._prompt_kv.part(1, row.computed))
                self._prompt_kv.keep(0, 0)
                self._running[row.seq] = None
                self._got[row] = 0
            self._verify(row)
        (call,) = self._calls
        call.closes = True
        self._in_turn = bool(call.finishing)
        if self.record_rows:
            call.running, call.prompting = list(self._running), [each.seq for each in self._prompting]
        self._check_memory(call)

    def _verify(self, row: TurnRow) -> None:
        """Draft and verify; the tokens come with this call."""
        seq, call, got = row.seq, self._call("decode"), self._got[row]
        left = (seq.limit_tokens or self._answer_tokens) - got
        drafts = min(left, self._drafts)
        call.serve(1 + drafts, row.computed, decodes=True)
        if call.rows is not None:
            call.rows.append((seq, 1 + drafts, row.computed))
        accepted = 0 if seq.acceptance is None else seq.acceptance(seq.verifications)
        gain = min(1 + min(accepted, drafts), seq.final_length - seq.prompt_tokens - got)
        seq.verifications += 1
        self.verifications += 1
        self.verified_drafts += drafts
        self.accepted_drafts += min(accepted, drafts, gain)
        seq.emit_at_once(call.number, gain)
        self._kv.grow(gain)
        row.computed += gain
        seq.computed = row.computed
        self._got[row] = got + gain
        if seq.prompt_tokens + got + gain >= seq.final_length:
            seq.state = "ending"
            del self._running[seq], self._got[row]
            self._kv.keep(0, 0)
            call.finishing = [seq]

    def _forget(self, row: TurnRow) -> None:
        """As of the base."""
        if row.seq in self._running:
            del self._rows[row.seq], self._running[row.seq], self._got[row]
            self._kv.keep(0, 0)
        else:
            super()._forget(row)

    def _note_tokens(self, row: TurnRow) -> None:
        """As of the base: they were noted as they came."""


__all__ = ["DraftedTurnsScheduler"]
