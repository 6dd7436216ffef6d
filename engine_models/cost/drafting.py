"""Speculative decoding: what a drafter proposes, how much of it is accepted, and what drafting costs.

A step verifies k drafted tokens of every decoding row in one forward pass of the model, which then yields one token more than
it accepts. With r_i the probability that the first i drafts are all accepted, a verification yields on average

    E[tokens] = 1 + r_1 + ... + r_k          = (1 - a^(k+1)) / (1 - a)  where each draft is accepted with probability a

(Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, equation 1). Acceptance depends
on the text, the drafter and the sampling: it is always the scenario's, there is no default.

The cost of a step is

    T = T_model(m = rows (1 + k), attention with 1 + k queries a row, logits of rows (1 + k))
      + T_draft(the step's own tokens) + (k - 1) T_draft(one token a row)

as vLLM drafts (`v1/spec_decode/llm_base_proposer.py`, `eagle.py`): the drafter first computes the tokens that the model has
just computed, prompts included, then proposes one token a pass. Medusa's heads propose all k in one pass without layers of
their own; an n-gram search runs on the host, whose time is not modelled. Lookahead (Fu et al. 2024) has no drafter: the model's
own pass computes guesses beside the n-grams that it verifies, so that a row's tokens of a step are more than it may accept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine_models.cost.draft_methods import KEEPS_KV, METHODS, WHERE
from engine_models.cost.stated_acceptance import ACCEPTANCE, acceptance_by_task, acceptance_rates
from engine_models.cost.step_time import StepTimeModel, TableRange, attended_by
from engine_models.cost.tables import FloatArray, PiecewiseLinear, log_grid
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.model.architecture import (
    check_parallelism,
    gemm_shapes,
    kv_bytes_per_token,
    mla_absorbed_bytes_per_rank,
    weight_bytes_per_rank,
)
from engine_models.model.blocks import Architecture, MlpBlock
from engine_models.model.formats import FORMATS, format_named
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

EAGLE3_VOCAB = 32_000
"""Tokens that an EAGLE-3 head can propose. Kind: assumed, 2026-11: `draft_vocab_size` of the heads published with the EAGLE-3
paper (Li et al. 2025) for Llama-3 models; others' heads differ."""

DRAFT_BYTES_PER_LOGIT = 2.0
"""Drafts are the arg max of bf16 logits, read once. Kind: by construction (vLLM's default `draft_sample_method: greedy`)."""


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding of one pool, resolved.

    method : one of `draft_methods.METHODS`.
    tokens : drafts a row and step (k); of a tree its depth.
    rates : probability that the first i drafts are all accepted, i = 1..k; never rising.
    draft : the drafter's layers as a model of its own, None where it has none (n-gram, Medusa).
    formats : number formats of the drafter.
    tensor_parallel : ranks that share the drafter.
    ranks : data-parallel ranks that share its experts (1: it has none, or each rank holds all).
    joins : (n, k) of the matrices besides the layers that every pass multiplies with, a token (they join embedding and
        hidden state).
    first_joins : likewise, in the first pass only.
    heads : (n, k) of the matrices of Medusa's heads, applied to the last token of a row.
    branches : tokens that a pass of the drafter proposes from, a row (1: drafts form a chain, else a tree).
    verified : tokens of a row that a step verifies, the one before the drafts included; 0: 1 + tokens.
    lengths : numbers of rows below which so many drafts are made, none above, where their number goes by the rows; `tokens` is
        the most.
    by_host : whether the host takes part in every pass as in a step; decodes alone draft then, and the drafter computes one pass
        more for rows all of whose drafts were accepted.
    apart : passes of a token a row besides one a draft, of a drafter that makes them all before the model's step and computes of
        that step the prompts only; None: its first pass computes what the model has just computed.
    notes : what was assumed.
    """

    method: str
    tokens: int
    rates: tuple[float, ...]
    draft: Architecture | None
    formats: Formats
    tensor_parallel: int = 1
    expert_parallel: int = 1
    ranks: int = 1
    joins: tuple[tuple[int, int], ...] = ()
    first_joins: tuple[tuple[int, int], ...] = ()
    heads: tuple[tuple[int, int], ...] = ()
    branches: int = 1
    verified: int = 0
    by_host: bool = False
    lengths: tuple[tuple[int, int], ...] = ()
    apart: int | None = None
    notes: tuple[str, ...] = ()

    def of_length(self, tokens: int) -> Speculation:
        """The same with so many drafts in every step."""
        return replace(self, tokens=tokens, rates=self.rates[:tokens], lengths=())

    @property
    def row_tokens(self) -> int:
        """Tokens of a row that a step verifies."""
        return self.verified or 1 + self.tokens

    @property
    def lookahead_tokens(self) -> int:
        """KV slots that the drafter needs beyond a row's tokens."""
        return self.tokens if self.method in KEEPS_KV else 0

    @property
    def mean_length(self) -> float:
        """Tokens a verification yields on average, the model's own included."""
        return 1.0 + sum(self.rates)

    def weight_bytes(self) -> int:
        """Weights of the drafter on one rank [bytes]. Heads share the model's embedding; all but EAGLE-3's its LM head."""
        total = int(2 * sum(n * k for n, k in (*self.joins, *self.first_joins, *self.heads)))
        if self.draft is None:
            return total
        held = self.draft
        if self.method != "draft_model":
            held = replace(
                held, has_embedding=False, has_lm_head=self.method == "eagle3", tied_embeddings=False
            )
        total += mla_absorbed_bytes_per_rank(held, self.tensor_parallel)
        return total + weight_bytes_per_rank(
            held, self.formats.weights, self.tensor_parallel, 1, self.expert_parallel, self.ranks
        )

    def kv_bytes_per_token(self) -> int:
        """KV bytes of one token in the drafter's layers on one rank."""
        if self.draft is None:
            return 0
        return kv_bytes_per_token(self.draft, self.formats.kv_cache, self.tensor_parallel)


# -- reading ------------------------------------------------------------------------------------------------


def speculation_of(
    settings: Mapping[str, Any],
    arch: Architecture,
    formats: Formats,
    *,
    load: Callable[[str], Architecture],
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    data_parallel: int = 1,
) -> Speculation:
    """Resolve a pool's `speculative` settings for the model `arch` served in `formats`.

    settings : `method`, `num_speculative_tokens`, `model`, `weights`, `draft_tensor_parallel_size`, `eagle_topk`,
        `num_draft_tokens` and one of `acceptance`, `acceptance_rates`, `acceptance_length`, `task`; None counts as left out.
        Of engines also `vocab_difference`, by how many tokens the vocabulary of a draft model may differ.
    load : architecture of a draft model by name.
    data_parallel : ranks that share the experts of the model.

    Raises InputError for what is missing, contradictory or out of range.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    method = _method(given)
    tokens = given.get("num_speculative_tokens")
    if tokens is None:
        raise InputError(
            "speculative decoding needs the number of drafts a step",
            where=f"{WHERE}.num_speculative_tokens",
            mend="give it as the engine's --speculative-config does, such as num_speculative_tokens: 3",
        )
    branches = int(given.get("eagle_topk", 1))
    verified = int(given.get("num_draft_tokens", 0))
    most = 1 + branches + (int(tokens) - 1) * branches * branches
    if verified > most:
        raise InputError(
            f"num_draft_tokens {verified} is more than {most}: {tokens} drafting steps of {branches}, and the token before them",
            where=f"{WHERE}.num_draft_tokens",
            mend="leave it out where drafts form a chain, or give more steps or a larger eagle_topk",
        )
    depth = min(int(tokens), verified - 1) if verified else int(tokens)
    stated = {key: given[key] for key in ACCEPTANCE if key in given}
    by_task: tuple[str, ...] = ()
    if not stated and "task" in given:
        probability, note = acceptance_by_task(method, str(given["task"]))
        stated, by_task = {"acceptance": probability}, (note,)
    rates = acceptance_rates(depth, **stated)
    speculation = _drafter(method, int(tokens), rates, given, arch, formats, load, tensor_parallel, expert_parallel)
    # experts of the model's own layer are spread as those of the others
    ranks = data_parallel if method == "mtp" and speculation.draft is not None and speculation.draft.has_experts else 1
    return replace(speculation, branches=branches, verified=verified, ranks=ranks, notes=(*speculation.notes, *by_task))


def _drafter(
    method: str,
    tokens: int,
    rates: tuple[float, ...],
    given: Mapping[str, Any],
    arch: Architecture,
    formats: Formats,
    load: Callable[[str], Architecture],
    tensor_parallel: int,
    expert_parallel: int,
) -> Speculation:
    """The drafter of a method, and what it is made of."""
    ranks = int(given.get("draft_tensor_parallel_size", tensor_parallel))
    if ranks not in (1, tensor_parallel):
        raise InputError(
            f"draft_tensor_parallel_size {ranks} is neither 1 nor the model's {tensor_parallel}",
            where=f"{WHERE}.draft_tensor_parallel_size",
            mend=f"use 1 or {tensor_parallel}, or leave it out" if tensor_parallel > 1 else "leave it out",
        )
    common: dict[str, Any] = {
        "method": method,
        "tokens": tokens,
        "rates": rates,
        "tensor_parallel": ranks,
    }
    if method == "ngram":
        notes = ("n-gram drafts: the host's search is not modelled",)
        return Speculation(draft=None, formats=formats, notes=notes, **common)
    if method == "lookahead":
        notes = ("lookahead: n-grams of the model's own guesses, verified beside new guesses; their pool takes no time here",)
        return Speculation(draft=None, formats=formats, notes=notes, **common)
    plain = replace(formats, weights=FORMATS[arch.dtype], activations=FORMATS[arch.dtype])
    if method == "medusa":
        block, head = (arch.hidden, arch.hidden), (-(-arch.vocab // ranks), arch.hidden)
        notes = (f"Medusa: {tokens} heads of one residual block and an LM head each (Cai et al. 2024)",)
        return Speculation(
            draft=None, formats=plain, heads=(block, head) * tokens, notes=notes, **common
        )
    if method == "draft_model":
        return _with_draft_model(given, arch, formats, load, common)
    layer = head_layer(arch, dense=method != "mtp")
    check_parallelism(layer, ranks, 1, 1, where=f"{WHERE}.draft_tensor_parallel_size")
    hidden = arch.hidden
    if method == "mtp":
        notes = (
            "MTP: one layer like the model's last, run once a draft, and a projection of twice the hidden width",
        )
        return Speculation(
            draft=layer,
            formats=formats,
            joins=((hidden, 2 * hidden),),
            notes=notes,
            expert_parallel=expert_parallel,
            **common,
        )
    if method == "eagle":
        notes = (
            "EAGLE head: one dense layer of the model's shape in 16 bit, the model's own LM head (assumed)",
        )
        return Speculation(draft=layer, formats=plain, joins=((hidden, 2 * hidden),), notes=notes, **common)
    layer = replace(layer, vocab=min(arch.vocab, EAGLE3_VOCAB))
    wide = gemm_shapes(layer, ranks)[0]  # reads the embedding beside the hidden state: twice the width
    notes = (
        f"EAGLE-3 head: one dense layer of the model's shape in 16 bit, {layer.vocab:,} tokens to propose from (assumed)",
    )
    return Speculation(
        draft=layer,
        formats=plain,
        joins=((wide.n, hidden),),
        first_joins=((hidden, 3 * hidden),),
        notes=notes,
        **common,
    )


def _with_draft_model(
    given: Mapping[str, Any],
    arch: Architecture,
    formats: Formats,
    load: Callable[[str], Architecture],
    common: dict[str, Any],
) -> Speculation:
    name = given.get("model")
    if not name:
        raise InputError(
            "method: draft_model needs the draft model",
            where=f"{WHERE}.model",
            mend="name a small model of the same vocabulary (`capacity-plan list models`)",
        )
    try:
        draft = load(str(name))
    except InputError as error:
        raise InputError(error.message, where=f"{WHERE}.model", mend=error.mend) from None
    if abs(draft.vocab - arch.vocab) > int(given.get("vocab_difference", 0)):
        raise InputError(
            f"{draft.name} has a vocabulary of {draft.vocab:,} tokens, {arch.name} one of {arch.vocab:,}",
            where=f"{WHERE}.model",
            mend="draft with a model of the same family and vocabulary: its tokens must be the model's",
        )
    check_parallelism(draft, common["tensor_parallel"], 1, 1, where=f"{WHERE}.draft_tensor_parallel_size")
    weights = format_named(
        str(given.get("weights") or draft.quantization or draft.dtype), where=f"{WHERE}.weights"
    )
    activations = format_named("bf16" if weights.weight_only else weights.compute)
    held = Formats(weights, activations, formats.kv_cache)
    return Speculation(
        draft=draft, formats=held, notes=(f"draft model {draft.name} in {weights.name}",), **common
    )


def _method(given: Mapping[str, Any]) -> str:
    """The method as given, or as vLLM infers it from the drafter's name."""
    method = given.get("method")
    if method is None:
        name = str(given.get("model", "")).lower()
        if not name:
            raise InputError(
                "speculative decoding needs a method",
                where=f"{WHERE}.method",
                mend=f"one of {', '.join(METHODS)}",
            )
        found = next(
            (word for word in ("eagle3", "eagle", "medusa", "mtp", "ngram") if word in name.replace("-", "")),
            None,
        )
        return found or "draft_model"
    method = str(method).lower()
    if method.endswith("_mtp"):
        return "mtp"  # vLLM's names by model family, such as deepseek_mtp
    if method == "ngram_gpu":
        return "ngram"
    if method not in METHODS:
        near = nearest(method, list(METHODS))
        raise InputError(
            f"speculative method '{method}' is not modelled" + (f"; did you mean '{near}'?" if near else ""),
            where=f"{WHERE}.method",
            mend=f"one of {', '.join(METHODS)}",
        )
    return method


def head_layer(arch: Architecture, *, dense: bool) -> Architecture:
    """A model of one layer like the last of `arch` that keeps KV by token; `dense` replaces experts by their active width."""
    whole = [
        (arch.attention[found[0]], arch.mlp[mlps[-1]])
        for found, mlps in arch.layout
        if found and mlps and arch.attention[found[0]].kind in ("full", "mla")
    ]
    attention, mlp = whole[-1] if whole else (next(b for b in reversed(arch.attention) if b.cache), arch.mlp[-1])
    if dense and mlp.kind == "moe":
        width = mlp.experts_per_token * mlp.expert_intermediate + mlp.shared_intermediate
        mlp = MlpBlock("dense", 1, width, gated=mlp.gated)
    return replace(
        arch,
        layers=1,
        attention=(replace(attention, layers=1, window_tokens=0),),
        mlp=(replace(mlp, layers=1),),
        layout=(((0,), (0,)),),
        positions=0,
    )


# -- time ---------------------------------------------------------------------------------------------------


class Drafting(StepCost):
    """Step times with drafts: the model's verification and the drafter's passes behind it. All times in seconds.

    model : the model's own step times, tabulated for 1 + k tokens a decoding row.
    speculation : what is drafted.
    up_to : the range to tabulate.

    `shared` is the drafter whose experts ranks share, which are no part of it; `passes` are those after the first, and from how
    many tokens a row each proposes.
    """

    def __init__(self, model: StepTimeModel, speculation: Speculation, up_to: TableRange) -> None:
        self.model = model
        self.launches = model.launches
        self._more, self._branches = self.passes = speculation.tokens - 1, speculation.branches
        self._by_host, self._all_accepted = speculation.by_host, speculation.rates[-1]
        self._apart = speculation.apart
        self._host_passes_s = 0.0
        if speculation.by_host and speculation.draft is not None:
            self._host_passes_s = speculation.tokens * model.host.step_s
        self._first: StepTimeModel | None = None
        self.shared: Shard | None = None
        terms, ops = model.shard.terms, model.shard.ops
        rows, tokens = up_to.rows, up_to.step_tokens
        self._heads = matrices_s(ops, speculation.heads, rows)
        self._joins = matrices_s(ops, speculation.joins, max(tokens, rows * self._branches))
        self._first_joins = matrices_s(ops, (*speculation.joins, *speculation.first_joins), tokens)
        if speculation.heads:
            logits = sum(n for n, _ in speculation.heads[1::2])
            grid = np.arange(rows + 1, dtype=np.float64)
            self._heads = self._heads + ops.elementwise_s(DRAFT_BYTES_PER_LOGIT * grid * logits)
        if speculation.draft is not None:
            host = HostOverhead(0.0, 0.0, device_layer_s=model.host.device_layer_s, launch_s=model.host.launch_s)
            later = Terms(host, terms.graph_sizes, sample_bytes_per_logit=DRAFT_BYTES_PER_LOGIT)
            parallel = Parallelism(speculation.tensor_parallel, expert=speculation.expert_parallel, ranks=speculation.ranks)
            if speculation.ranks > 1:  # its experts as the model's
                later = replace(
                    later,
                    moe_backend=terms.moe_backend,
                    moe_by_flag=terms.moe_by_flag,
                    moe_rival=terms.moe_rival,
                    routed=terms.routed,
                    one_sided=terms.one_sided,
                    gathered_bytes=terms.gathered_bytes,
                    exchanges_over_all=terms.exchanges_over_all,
                )
            shard = Shard(speculation.draft, ops, speculation.formats, parallel, later)
            self.shared = shard if speculation.ranks > 1 else None
            first = replace(later, query_tokens=speculation.row_tokens)
            self._first = StepTimeModel(replace(shard, terms=first), up_to)
            proposers = rows * self._branches
            self._later = StepTimeModel(shard, replace(up_to, rows=proposers, step_tokens=max(tokens, proposers)))

    def _drafted_s(self, batch: Batch, device_s: float, prefill_s: float) -> tuple[float, float]:
        """Device time of a step, and the part attributed to its prefill rows, with that of the drafter behind it."""
        rows = batch.decode_rows + len(batch.prefill)
        if self._first is None:
            return device_s + float(self._heads[rows]), prefill_s
        if self._apart is not None:
            apart_s, apart_prefill_s = self._apart_s(batch, self._first, self._apart)
            return device_s + apart_s, prefill_s + apart_prefill_s
        first_s, (first_prefill_s,) = self._first.step_s((batch,))
        join_s = float(self._first_joins[batch.tokens])
        device_s += first_s + join_s
        prefill_s += first_prefill_s + join_s * (batch.tokens - batch.decode_tokens) / batch.tokens
        if self._by_host and not batch.decode_rows:
            return device_s, prefill_s
        if self._more:
            attended = batch.decode_kv_tokens
            for new, prior in batch.prefill:
                attended += new + prior
            proposers = rows * self._branches
            device_s += self._later.passes_s(proposers, (attended * self._branches,), self._more)[0]
            device_s += self._more * float(self._joins[proposers])
        if self._by_host:
            device_s += self._caught_up_s(batch)
        return device_s, prefill_s

    def _apart_s(self, batch: Batch, of_prompts: StepTimeModel, more: int) -> tuple[float, float]:
        """What a drafter takes for a step's prompts and, one token a row and pass, its decodes; the prompts' part of it."""
        device_s = prefill_s = 0.0
        if batch.prefill:
            tokens = batch.tokens - batch.decode_tokens
            prompts = Batch(batch.number, prefill=batch.prefill, tokens=tokens)
            prompts.padded_tokens = 0 if batch.decode_rows else batch.padded_tokens
            device_s, (prefill_s,) = of_prompts.step_s((prompts,))
        rows = batch.decode_rows
        if rows:
            drafts = batch.decode_tokens - rows  # of all rows
            passes = drafts // rows + (more if drafts else 0)
            if passes:
                device_s += self._later.passes_s(rows, (batch.decode_kv_tokens - drafts,), passes)[0]
        return device_s, prefill_s

    def _caught_up_s(self, batch: Batch) -> float:
        """A pass for the rows all of whose drafts are accepted, by how likely there is one."""
        rows, share = batch.decode_rows, self._all_accepted
        some = max(1, round(rows * share))
        (pass_s,) = self._later.passes_s(some, (batch.decode_kv_tokens * some / rows,))
        return float((1.0 - (1.0 - share) ** rows) * (pass_s + float(self._joins[some])))

    def own_s(self, batch: Batch, tokens: int) -> tuple[float, float, float]:
        """As of `StepTimeModel`, drafting included; its part for prefill rows is counted with their attention."""
        own_s, linear_s, prefill_s = self.model.own_s(batch, tokens)
        own_s, prefill_s = self._drafted_s(batch, own_s, prefill_s)
        return own_s, linear_s, prefill_s

    def _drafted_run_s(self, shape: Batch, device_s: FloatArray, steps: int) -> FloatArray:
        """`_drafted_s` of `steps` steps of a run that begins with `shape`, by the same arithmetic."""
        rows, attended = shape.decode_rows, shape.kv_by_step
        if self._first is None:
            return device_s + float(self._heads[rows])
        if attended is None:
            raise ValueError("the rows of a run with drafts grow unevenly: its shape says by how much")
        device_s = device_s + (self._first.run_s((shape,), steps) + float(self._first_joins[shape.tokens]))
        if self._more:
            proposers = rows * self._branches
            later = Batch(0, proposers, proposers, tokens=proposers)
            passes_s = np.zeros(steps)
            for number in range(self._more):
                later.kv_by_step = attended * self._branches + number * proposers
                passes_s = passes_s + self._later.run_s((later,), steps)
            device_s = device_s + passes_s
            device_s = device_s + self._more * float(self._joins[proposers])
        return device_s

    def own_run_s(self, shape: Batch, tokens: int, steps: int) -> FloatArray:
        """`own_s` of `steps` steps of a run that begins with `shape`, in an array."""
        return self._drafted_run_s(shape, self.model.own_run_s(shape, tokens, steps), steps)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device time of the step of the one rank there is, drafting included, and the part attributed to its prefill rows."""
        device_s, (prefill_s,) = self.model.step_s(batches)
        self.launch_s, self.launch_wait_s = self.model.launch_s, self.model.launch_wait_s
        whole_s, prefill_s = self._drafted_s(batches[0], device_s, prefill_s)
        self.last_s = whole_s - device_s
        return whole_s, [prefill_s]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """Device seconds of `steps` steps of a run that begins with the shape of the one rank there is."""
        return self._drafted_run_s(shapes[0], self.model.run_s(shapes, steps), steps)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """`run_s` as plain numbers."""
        shape = shapes[0]
        rows = shape.decode_rows
        if self._first is None or shape.kv_by_step is None:
            device_s, heads_s = self.model.few_s(shapes, steps), float(self._heads[rows])
            return [step_s + heads_s for step_s in device_s] if heads_s else device_s
        attended = attended_by(shape, steps)
        device_s = self.model.few_s(shapes, steps, attended)
        first_s, join_s = self._first.few_s(shapes, steps, attended), float(self._first_joins[shape.tokens])
        if not self._more:
            return [step_s + (pass_s + join_s) for step_s, pass_s in zip(device_s, first_s, strict=True)]
        proposers = rows * self._branches
        of_steps = [kv_tokens * self._branches for kv_tokens in attended] if self._branches > 1 else attended
        passes_s = self._later.passes_s(proposers, of_steps, self._more)
        joins_s = self._more * float(self._joins[proposers])
        parts_s = zip(device_s, first_s, passes_s, strict=True)
        return [step_s + (pass_s + join_s) + sum_s + joins_s for step_s, pass_s, sum_s in parts_s]

    def host_s(self, batch: Batch) -> float:
        """Host time of a batch."""
        own_s = self.model.host_s(batch)
        return own_s + self._host_passes_s if batch.decode_rows else own_s


class DraftingByRows(StepCost):
    """Step times where the number of drafts goes by the rows: each step's are those of as many drafts as it verifies.

    by_length : step times by the number of drafts, 0 for the model alone. Steps of prompts are those of the most.
    """

    def __init__(self, by_length: Mapping[int, StepCost]) -> None:
        self._by_length = dict(by_length)
        self._most = self._by_length[max(self._by_length)]

    def _of(self, batch: Batch) -> StepCost:
        return self._by_length[batch.decode_tokens // batch.decode_rows - 1] if batch.decode_rows else self._most

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        cost = self._of(batches[0])
        found = cost.step_s(batches)
        self.last_s = cost.last_s
        return found

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        return self._of(shapes[0]).run_s(shapes, steps)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        return self._of(shapes[0]).few_s(shapes, steps)

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._of(batch).host_s(batch)


def matrices_s(ops: Ops, matrices: tuple[tuple[int, int], ...], highest: int) -> FloatArray:
    """Seconds of products with 16-bit matrices (n, k), all in turn, for 0 to `highest` tokens."""
    if not matrices:
        return np.zeros(highest + 1)
    grid = log_grid(highest, 6)
    times = {shape: ops.gemm_s("bf16", grid, *shape) for shape in set(matrices)}
    total = np.maximum.accumulate(np.sum([times[shape] for shape in matrices], axis=0))
    return PiecewiseLinear(grid.astype(float), total).over(np.arange(highest + 1, dtype=np.float64))


# -- words --------------------------------------------------------------------------------------------------


def summary_note(speculation: Speculation) -> str:
    """One line on what is assumed of the acceptance."""
    rates = ", ".join(f"{rate:.3g}" for rate in speculation.rates)
    several = len(speculation.rates) > 1
    count = speculation.row_tokens - 1 if speculation.branches > 1 else speculation.tokens
    shape = f" in a tree {speculation.tokens} deep" if speculation.branches > 1 else ""
    drafts = f"{count} drafts a step{shape}, the first 1, 2, ... all" if several else "one draft a step,"
    return (
        f"speculative decoding ({speculation.method}): {drafts} accepted with "
        f"probability {rates} (given), {speculation.mean_length:.2f} tokens a verification; independent of the text"
    )


__all__ = [
    "METHODS",
    "Drafting",
    "Speculation",
    "head_layer",
    "matrices_s",
    "speculation_of",
    "summary_note",
]
