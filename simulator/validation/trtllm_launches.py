"""What is known of measured TensorRT-LLM runs beside rows and launches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.engines.trtllm import ENGINE
from engine_models.engines.trtllm_kernels import OWN_KERNELS
from engine_models.model.architecture import load_architecture
from simulator.validation.launches import launch_of
from simulator.validation.published import Fitting, Published, Row, Unknowns, number, parts, tensor_ranks
from simulator.validation.spellings import Unplayable, weights_format

AS_ALL = {"cuda_graph_config": {"enable_padding": True, "max_batch_size": 512}, "kv_cache_config": {"dtype": "fp8"}}
"""What all public launches have, for servers of prefill and decode whose recipe is not (assumed)."""


def launch_flags(row: Row, device: str) -> dict[str, Any]:
    """Flags with which a row's server was launched: those of the command and those of its YAML file."""
    flags = dict(launch_of(row).flags)
    if row.get("mode") == "disagg" and "moe_config" not in flags:  # its recipe is not public, or in part
        flags = AS_ALL | flags
        if device.startswith(("b200", "gb200")) and str(row.get("precision")) == "fp4":
            flags["moe_config"] = {"backend": OWN_KERNELS}
    flags |= flags.pop("extra_llm_api_options", {})
    fewer = _fewer_ranks(row)
    if fewer:
        flags |= {"tp_size": fewer, "ep_size": fewer}
    return flags


def _fewer_ranks(row: Row) -> int:
    """Ranks of a row whose launch was taken for one of more; 0 where it was not.

    The sample multiplies tensor by expert ranks: 4 with 2 of experts is a run on two devices, whatever script of four ranks
    holds its users.
    """
    tp, ep = (int(number(row, name) or 1) for name in ("tp", "ep"))
    launch = launch_of(row)
    taken = tp == launch.tensor_ranks and 1 < ep < int(launch.flags.get("ep_size") or 1)
    return tp // ep if taken else 0


def parallel(row: Row) -> dict[str, int]:
    """A pool's keys of the ranks of a row's launch: under attention data parallelism each device is a rank of its own."""
    ranks = _fewer_ranks(row) or launch_of(row).tensor_ranks
    if launch_flags(row, "").get("enable_attention_dp"):
        return {"tensor_parallel": 1, "data_parallel": ranks}
    return tensor_ranks(ranks)


def compiles_while_measured(row: Row) -> bool:
    """Whether a run measured what its server compiled on first use, beside what it serves.

    On Hopper products and experts with weights in FP8 blocks are DeepGEMM's, which are compiled for each kind of shape when it
    first comes (by NVRTC, into memory: `cpp/tensorrt_llm/deep_gemm` and its switches TRTLLM_DG_JIT_...; pull request 18813 of
    2026-09 compiles at the start), where SM100 has prebuilt ones. Without a warm-up by the client the first request of each user
    waits 0.7 to 3.8 s longer than predicted (DeepSeek-R1 and V3 on H200, 1,024 and 8,192 tokens by 4 to 32 users); Llama-3.1-70B
    in FP8 by tensor and gpt-oss-120b on H200, and DeepSeek in FP8 on B200, as cold, -0.2 to 0.1 s. An inference, since nobody
    traced a server.
    """
    on_hopper = str(row["hardware"]).lower().startswith(("h100", "h200"))
    if launch_of(row).client.get("num_warmups_per_user") != 0 or not on_hopper:
        return False
    stored = load_architecture(str(row["model"])).quantization
    return weights_format(row, stored) == "fp8_block"


def release(stated: str) -> str:
    """The modelled version for a stated one: release candidates stand for what they lead to."""
    if parts(stated) < (0, 20):
        raise Unplayable(f"{ENGINE.title} {stated} is older than the modelled versions")
    return stated


OF_DYNAMO = (((0, 9), "1.3"), ((0, 7), "1.2"), ((0, 5), "1.1"))
"""From which version on Dynamo's image holds which TensorRT-LLM, the newest first (datasheet: its support matrix, read 2026-11:
0.6 has 1.1.0rc5, 0.7.0 1.2.0rc2, 0.8.1.post1 to post3 1.2.0rc6, 0.9.0 1.3.0rc1; what 0.5 has is taken for that of 0.6)."""


def unstated(row: Row) -> str:
    """Version of a row whose image names Dynamo's alone; "" where it is older than those known."""
    image = re.search(r"runtime:(\d+\.\d+)", launch_of(row).image)
    return next((own for since, own in OF_DYNAMO if image and parts(image[1]) >= since), "")


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    names = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size", "max_num_batched_tokens": "max_num_tokens"}
    return {flag: int(row[name]) for name, flag in names.items() if number(row, name)}


UNKNOWNS: Unknowns = {
    "front_end_s": ("s", 0.004, "client, HTTP, detokeniser, hand-over to the executor: added to TTFT and E2E"),
    "prefill_launch_s": ("s", 4e-6, "host time to launch one operation of a step with prompts, which no CUDA graph holds"),
    "reduce_wait_s": ("s", 1e-6, "wait for the slowest rank at an all-reduce, beyond its time in a benchmark of aligned ranks"),
}
TARGETS = ("tpot_mean_ms", "ttft_mean_ms")
FEW_USERS = 16
"""Most users of a run that tells what the host costs: of more the device's queue is most of a time to first token."""


def _told(row: Row, flags: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    """Both metrics of few users on a device whose experts' kernels are priced as those that ran."""
    backend = str((flags.get("moe_config") or {}).get("backend", OWN_KERNELS))
    known = launch_of(row).confidence != "none" and all(target in row for target in TARGETS)
    return TARGETS if known and backend == OWN_KERNELS and (number(row, "concurrency") or 0) <= FEW_USERS else ()


def _runs(name: str, rows: list[Row]) -> tuple[str, str, str]:
    where = " and ".join(sorted({str(row["hardware"]).split("-")[0] for row in rows}))
    return ENGINE.name, where, "silicon sample of aiconfigurator: InferenceX"


TRTLLM = Published(
    release=release,
    unstated=unstated,
    columns=columns,
    launch=launch_flags,
    parallel=parallel,
    ranks=lambda ranks: {"enable_attention_dp": True},
    compiles_while_measured=compiles_while_measured,
    fittings={"": Fitting(UNKNOWNS, TARGETS, _told, _runs)},
    fitted="front end, launch time of prompts' steps and wait at an all-reduce on the runs of InferenceX with up to 16 users",
    chosen="how many launches experts by backend and latent attention cost the host in a prompt's step (gpt-oss-120b and "
    "DeepSeek-R1 of InferenceX), and that the tables' pass that finds scales, one nvfp4 table and rotary embeddings are not "
    "priced (Llama-3.1-70B of InferenceX)",
)
