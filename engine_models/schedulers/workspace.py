"""Fixed groups whose rows each have a workspace of so many tokens, set aside when the engine starts: padding counts in it.

A group whose longest prompt and answer together exceed a row's workspace fails, whoever has them.

Source: behaviour of DeepSpeed-Inference 0.19.8 (`deepspeed/inference/config.py`: `max_out_tokens`); see
docs/engines/deepspeed_inference.md.
"""

from __future__ import annotations

from engine_models.schedulers.static import StaticScheduler


class WorkspaceScheduler(StaticScheduler):
    """As the base; each row holds `row_tokens` tokens.

    Parameters
    ----------
    rows : most requests of a group.
    row_tokens : tokens of a row's workspace.
    windows, aggregate : as of the base.
    """

    def __init__(
        self, rows: int, row_tokens: int, *, windows: tuple[int, ...] = (), aggregate: bool = True
    ) -> None:
        super().__init__(rows, rows * row_tokens, windows=windows, aggregate=aggregate)
        self.row_tokens = row_tokens

    def _row_tokens(self, rows: int) -> int:
        """As of the base."""
        return self.row_tokens + 1  # the last token of an answer is in no cache
