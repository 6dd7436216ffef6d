"""What is known of measured SGLang runs beside rows and launches: versions, warm-up, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.overheads import own_overheads
from engine_models.engines.sglang import ENGINE
from engine_models.engines.sglang_flags import ENVIRONMENT
from simulator.validation.launches import launch_of
from simulator.validation.published import Fitting, Published, Row, Unknowns, number, parts
from simulator.validation.spellings import Unplayable


def compiles_while_measured(row: Row) -> bool:
    """Whether a run measured what its server compiled on first use, beside what it serves.

    SGLang warms up with one short request, so without a warm-up by the client the first prefills of a run compile kernels for
    their shapes. Rows of B200 whose prefills fill a chunk wait once for 50 to 90 s (nvfp4, 10 November 2025) or 10 to 20 s (the
    others), whatever their load and length: 5 to 9 s and 1 to 2 s on a mean over ten requests a user, where 0.3 to 2 s are
    served. Prompts of 1,024 tokens by up to 16 users, which fill none, wait 2 to 5 s. vLLM tries its largest batch at start-up.
    """
    return launch_of(row).client.get("num_warmups_per_user") == 0


def start_s(row: Row) -> float:
    """How much longer the first request of each user waits when the closed loop of a row starts [s].

    On Hopper, where all users start at once after warm-ups of one prompt alone, every first request waits more than a second
    longer than it is served (InferenceX issue 870, R1 on H200: the 99th percentile of 80 requests by 8 users is 1.98 s, the mean
    0.33 s; without it the mean would be that of the prediction), whatever the users and lengths; on B200 at most 0.3 s are left,
    under vLLM with gpt-oss nothing, and with one user nothing. Its experts run on Triton's kernels, on B200 on TensorRT-LLM's:
    Triton compiles the two products of a layer for every tile of tokens, and again for numbers of tokens that 16 divides or does
    not; 0.3 to 0.4 s of one core each (measured: `fused_moe_kernel` of SGLang 0.5.9 with its tiles for H200, Triton 3.5, sm_90).
    An inference, since nobody traced a server; batches sent to fresh servers elsewhere wait as long (`EnginePlan.first_use_s`).
    """
    client = launch_of(row).client
    warmed_by_one = client.get("num_warmups_per_user") and client.get("warmup_prompt")
    return float(own_overheads(ENGINE.name)["start_s"]["value"]) if warmed_by_one and _on_hopper(row) else 0.0


def _on_hopper(row: Row) -> bool:
    return str(row["hardware"]).lower().startswith(("h100", "h200"))


def release(stated: str) -> str:
    """The modelled version for a stated one: 0.4, which has the overlapped scheduler of today, is taken for the newest."""
    if parts(stated) < (0, 4):
        raise Unplayable(f"{ENGINE.title} {stated} scheduled otherwise than the modelled versions")
    return "" if parts(stated) < (0, 5) else stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    names = {
        "max_model_len": "context_length",
        "max_num_seqs": "max_running_requests",
        "max_num_batched_tokens": "chunked_prefill_size",
        "block_size": "page_size",
    }
    args: dict[str, Any] = {flag: int(row[name]) for name, flag in names.items() if number(row, name)}
    if number(row, "gpu_mem_util"):
        args["mem_fraction_static"] = float(row["gpu_mem_util"])
    if row.get("prefix_caching") is not None and not row["prefix_caching"]:
        args["disable_radix_cache"] = True
    return args


def launch(row: Row, device: str) -> dict[str, Any]:
    """Flags of a row's script, and the variables of its environment that are read as flags."""
    known = launch_of(row)
    return {**switches(known.environment), **known.flags}


def switches(environment: Mapping[str, str]) -> dict[str, bool]:
    """Switches of products that an environment states, by the flags that they are read as."""
    return {ENVIRONMENT[name]: value in ("true", "1") for name, value in environment.items() if name in ENVIRONMENT}


UNKNOWNS: Unknowns = {
    "start_s": (
        "s",
        0.5,
        "what the first requests of a fresh server wait for their experts' kernels to be compiled; replays on fresh servers "
        "only, in no simulation",
    ),
}


def _told(row: Row, flags: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    """TTFT where closed loops start late."""
    return TARGETS if TARGETS[0] in row and start_s(row) else ()


def _runs(name: str, rows: list[Row]) -> tuple[str, str, str]:
    where = " and ".join(sorted({str(row["hardware"]).split("-")[0] for row in rows}))
    return ENGINE.name, where, "silicon sample of aiconfigurator: InferenceX"


def _of_ranks(ranks: int) -> dict[str, Any]:
    """Flags of data-parallel ranks: over more than eight their experts exchange through DeepEP (assumed: SGLang's guides to wide
    expert parallelism launch it so; the rows do not say)."""
    return {"enable_dp_attention": True} | ({"moe_a2a_backend": "deepep"} if ranks > 8 else {})


TARGETS = ("ttft_mean_ms",)

SGLANG = Published(
    release=release,
    columns=columns,
    launch=launch,
    ranks=_of_ranks,
    start_s=start_s,
    compiles_while_measured=compiles_while_measured,
    fittings={"": Fitting(UNKNOWNS, TARGETS, _told, _runs)},
    fitted="what a closed loop of InferenceX waits longer at its start on Hopper (in these replays alone) on runs of DeepSeek-R1",
    chosen="the front end and the launch times of prefills (published runs of Llama-3.1-8B, DeepSeek-V3 and R1 with one user), "
    "the launches of experts, latent attention and gated delta nets (three of the reports below, their time to first token with "
    "one user), the host time of a step without overlap (an earlier fit, now assumed), and that the small kernels of latent "
    "attention and shared experts are priced for this engine and not for the others (published runs on B200), the handshake "
    "of its prefill and decode servers (one published run), what its prefill server takes to post a transfer over NIXL before "
    "0.5.12 (24 runs of DeepSeek-R1 on B200 and GB200), and the host time of a draft (eleven published rates)",
)
