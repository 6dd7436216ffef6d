"""What the flags of a pool of vLLM say of its steps: tokens, rows and context, CUDA graphs, sampling, steps formed ahead."""

from __future__ import annotations

from engine_models.cost.draft_methods import ON_DEVICE
from engine_models.cost.sampling import Sampler
from engine_models.declaration import PoolRequest, Said
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_options import cuda_graphs, latent_block_tokens, truncates_samples
from engine_models.engines.vllm_runner import second_runner
from engine_models.engines.vllm_versions import Version, graph_sizes, scheduling_switches
from engine_models.model.overrides import served_context, warn_of_longer
from engine_models.parts.batch import ContinuousRules
from engine_models.refusals import no_pascal
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

GIB = 1 << 30
CPU_TOKENS, CPU_ROWS = 2048, 128
"""Default max_num_batched_tokens and max_num_seqs of the API server on CPUs, for each rank (datasheet: vLLM 0.11 to 0.30,
`engine/arg_utils.py`)."""
CPU_BLOCK_TOKENS = 128
"""Default tokens of a block on CPUs (datasheet: `platforms/cpu.py` of 0.11.0 and of 2026)."""
ROWS_BY_NAME_SINCE, BY_MEMORY_SINCE, A100_APART_SINCE = (0, 8, 4), (0, 8, 5), (0, 9, 1)
"""Before the second the default limits go by whether a device's name has H100 or H200 in it, before the first its rows by
nothing; before the third an A100 of 80 GB has those of H100 (datasheet: `engine/arg_utils.py` of 0.7.0 to 0.9.2; 0.9.0 was not
read)."""
LARGE_BUDGET_SINCE = (0, 28)
"""First version with a larger default token budget on devices of 160 GiB and more (datasheet: as above, 0.27.0 and 0.28.0)."""
KERNEL_BLOCK_TOKENS = 16
"""Tokens of a KV block come in multiples of this: every attention backend of vLLM on CUDA and ROCm asks for it, and the engine
does not start with another (datasheet: vLLM pull requests 36241 and 41363, 2026)."""
DRAFTS_OVER_STAGES_SINCE = (0, 33)
"""Version whose second model runner was read to send drafts to all stages of a pipeline, the drafter on the last (datasheet:
`v1/worker/gpu/pp_utils.py` of 0.33.0; pull requests 50514 and 46994, 2026-08 and 09). Documentation up to 0.15 excludes it; those
between are not told apart."""
SAMPLING_WORK: dict[Sampler, str] = {
    "sort": "sorts the logits of every row",
    "pivot": "searches the logits of every row for a threshold",
    "rejection": "draws from the logits of every row until a token is accepted",
    "cores": "sorts the logits of every row on one core (assumed time)",
}
"""What each sampler does to truncate, for the summary."""


_AMD_BEFORE = ("gcn5", "cdna1", "rdna2")
"""AMD's architectures before those that vLLM runs on (datasheet: docs/getting_started/installation/gpu.rocm.inc.md, 0.4 to
0.33: MI200, MI300, MI350, RX 7900, RX 9000, Ryzen AI MAX)."""
_NOT_ON_VOLTA = ("awq", "int4", "int8", "fp8", "fp8_block", "nvfp4", "mxfp4")
"""Formats of weights without a kernel on Volta (datasheet: docs/features/quantization of 0.6 to 0.15: AWQ and INT8 from Turing
on, Marlin, which widens the others, from Ampere on, later Turing)."""


@dataclass(frozen=True)
class Serving:
    """What the flags of a pool say of its steps.

    tokens, rows : most of a step. context : longest request, `fitted` to the cache where the flag leaves it open. in_flight :
    batches that are formed before the results of the first are known. block : tokens asked for. graphs : sizes that are
    captured; `eager` : none is, `prompt_graph_tokens` : largest for steps with prompts. sorts : requests are sampled with
    truncation.
    """

    tokens: int
    rows: int
    context: int
    fitted: bool
    chunked: bool
    in_flight: int
    block: int
    graphs: tuple[int, ...]
    eager: bool
    prompt_graph_tokens: int
    sampler: Sampler
    sorts: bool
    watermark: float

    @classmethod
    def of(cls, request: PoolRequest, version: Version, said: Said) -> Serving:
        """Read the flags; InputError on what is out of range."""
        _refuse_devices(request)
        flags, arch, drafts, first = request.flags, request.arch, request.speculation, version.first_engine
        overrides = {"rope_scaling": flags.get("rope_scaling"), **(flags.get("hf_overrides") or {})}
        most = served_context(arch, overrides, "hf_overrides", said.warnings)
        fitted = flags.get("max_model_len") in (-1, "auto")
        context = most if fitted else int(flags.get("max_model_len") or most)
        warn_of_longer(context, most, "max_model_len", "vLLM", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", said.warnings)
        chunked = vllm_v0.cuts_prompts(flags, context) if first else bool(flags.get("enable_chunked_prefill", True))
        tokens, rows = _limits_of_steps(request, version, context, chunked=chunked)
        in_flight, block = _in_flight(request, version), _block_tokens(request)
        graphs = cuda_graphs(flags, said.warnings)
        largest = vllm_v0.LARGEST_GRAPH if first and graphs.largest is None else graphs.largest
        captured = graphs.sizes or graph_sizes(version, rows, tokens, 1 + (drafts.tokens if drafts else 0), largest)
        if flags.get("performance_mode") == "interactivity" and not graphs.sizes:
            captured = tuple(sorted({*captured, *range(1, min(32, captured[-1]) + 1)}))
        on_cpu = request.device_kind == "cpu"  # there are no graphs, and nothing is launched: an operation is a call
        sizes = () if graphs.eager or on_cpu else captured
        sampler: Sampler = "cores" if on_cpu else version.sampler
        if graphs.eager and not on_cpu:
            said.notes.append("enforce_eager: a step takes no less than the host needs to launch its operations one by one")
        if int(flags.get("stream_interval") or 1) > 1:
            said.warnings.append("stream_interval: tokens are shown as they are made, not in chunks")
        idle = "gpu_memory_utilization" if on_cpu else "cpu_kvcache_space"
        if flags.get(idle):
            said.warnings.append(f"vllm flag `{idle}` has no effect on {'CPUs' if on_cpu else 'GPUs'}; it is ignored")
        sorts = truncates_samples(arch, flags)
        if sorts:
            said.notes.append(
                f"requests are sampled with top-p or top-k as the checkpoint asks (assumed), which {SAMPLING_WORK[sampler]}; "
                "generation_config: vllm in engine_args turns it off"
            )
        watermark = float(flags.get("watermark", 0.0))
        if watermark and not version.has_watermark:
            said.warnings.append(f"vLLM {version.name} has no watermark; it is ignored")
            watermark = 0.0
        of_prompts = max(sizes, default=0) if graphs.of_prefills and not first else 0
        return cls(
            tokens, rows, context, fitted, chunked, in_flight, block, sizes, graphs.eager, of_prompts, sampler, sorts, watermark
        )


def _refuse_devices(request: PoolRequest) -> None:
    """Raise InputError for devices that no vLLM runs on, and formats without a kernel there."""
    device, weights = load_device(request.device_name), request.formats.weights.name
    no_pascal(request, "vLLM")
    if device.architecture in _AMD_BEFORE:
        raise InputError(
            f"vLLM runs on AMD's GPUs from MI200 and RX 7900 on, not on {device.title}",
            where="deployment.hardware",
            mend="use llama_cpp, or another device (`capacity-plan list hardware`)",
        )
    if device.architecture == "volta" and weights in _NOT_ON_VOLTA:
        raise InputError(
            f"vLLM has no kernel for weights in {weights} on {device.title}",
            where="deployment.weights",
            mend="use fp16 or gptq, or a GPU from Turing on",
        )


def _limits_of_steps(request: PoolRequest, version: Version, context: int, *, chunked: bool) -> tuple[int, int]:
    """Tokens and rows of a step at most; InputError where whole prompts have no room."""
    flags, first = request.flags, version.first_engine
    default_tokens, default_rows = _default_limits(version, request)
    if flags.get("performance_mode") == "throughput":
        default_tokens, default_rows = 2 * default_tokens, 2 * default_rows
    if first and chunked:
        default_tokens = vllm_v0.chunk_tokens(version.number)
    rows = int(flags.get("max_num_seqs") or default_rows)
    tokens = int(flags.get("max_num_batched_tokens") or 0)
    if not tokens:
        tokens = default_tokens if chunked else max(default_tokens, context)
        tokens = min(tokens, rows * context)
    elif not chunked and tokens < context:
        raise InputError(
            f"max_num_batched_tokens {tokens} is below max_model_len {context} with chunked prefill off",
            where="deployment.engine_args.max_num_batched_tokens",
            mend="raise it, lower max_model_len, or leave chunked prefill on",
        )
    return tokens, min(rows, tokens)


def _default_limits(version: Version, request: PoolRequest) -> tuple[int, int]:
    """Default (max_num_batched_tokens, max_num_seqs) of the API server, by device."""
    device_name, memory_bytes = request.device_name, request.device_memory_bytes
    if version.first_engine:
        return vllm_v0.TOKENS, vllm_v0.ROWS
    if request.device_kind == "cpu":
        ranks = request.tensor_parallel * request.pipeline_parallel
        return CPU_TOKENS * ranks, CPU_ROWS * ranks
    if version.number < BY_MEMORY_SINCE:
        named = any(name in device_name for name in ("h100", "h200"))
        return (8192 if named else 2048), (1024 if named or version.number < ROWS_BY_NAME_SINCE else 256)
    if version.number < A100_APART_SINCE and memory_bytes >= 70 * GIB:
        return 8192, 1024
    if memory_bytes >= 160 * GIB and "gb10" not in device_name:
        return (16384 if version.number >= LARGE_BUDGET_SINCE else 8192), 1024
    if memory_bytes >= 70 * GIB and "a100" not in device_name:
        return 8192, 1024
    return 2048, 256


def _in_flight(request: PoolRequest, version: Version) -> int:
    """Batches that are formed before the results of the first are known; InputError for what vLLM refuses beside drafts."""
    asked, pp, drafts = request.flags.get("async_scheduling"), request.pipeline_parallel, request.speculation
    reads = version.number >= DRAFTS_OVER_STAGES_SINCE and second_runner(request, version.number)
    if drafts is not None and pp > 1 and not reads:
        since = f", not {version.name}" if version.number < DRAFTS_OVER_STAGES_SINCE else f", which has no {drafts.method}"
        raise InputError(
            f"vLLM drafts across pipeline stages from 0.33 on, by its second model runner{since}",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel instead, or leave speculative decoding out",
        )
    able = drafts is None or drafts.method in ON_DEVICE
    if asked and not able:
        assert drafts is not None
        raise InputError(
            f"async_scheduling does not go with {drafts.method} drafts: they are made from tokens that the host must see first",
            where="deployment.engine_args.async_scheduling",
            mend=f"leave it out, or draft with one of {', '.join(ON_DEVICE)}",
        )
    if request.flags.get("distributed_executor_backend") in ("ray", "external_launcher") and not version.ray_is_asynchronous:
        able = False
    if request.device_kind == "cpu":  # as a server of 0.32 was observed, 2026-11; other versions assumed alike
        able = False
    asynchronous = bool(asked) if asked is not None else version.async_scheduling and able
    return 2 if asynchronous and pp == 1 else pp


def _block_tokens(request: PoolRequest) -> int:
    """Tokens of a block, by default those of device and attention; InputError where no kernel takes them."""
    block = int(request.flags.get("block_size") or 0)
    if not block and request.device_kind == "cpu":
        block = CPU_BLOCK_TOKENS
    elif not block:
        block = latent_block_tokens(request) if request.arch.has("mla") else 16
    if block % KERNEL_BLOCK_TOKENS:
        raise InputError(
            f"block_size {block}: no attention backend of vLLM takes it, only multiples of {KERNEL_BLOCK_TOKENS}",
            where="deployment.engine_args.block_size",
            mend=f"write {max(1, round(block / KERNEL_BLOCK_TOKENS)) * KERNEL_BLOCK_TOKENS}, or leave block_size out",
        )
    return block


def rules_of(request: PoolRequest, version: Version, serving: Serving, context: int) -> ContinuousRules:
    """The rules of a rank's scheduler, for requests of up to `context` tokens."""
    flags, drafts = request.flags, request.speculation
    return ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=min(serving.tokens, int(flags.get("max_num_scheduled_tokens") or serving.tokens)),
        max_num_seqs=min(serving.rows, int(flags.get("max_num_active_seqs") or serving.rows)),
        max_model_len=context,
        in_flight=serving.in_flight,
        policy=str(flags.get("scheduling_policy", "fcfs")),
        chunked_prefill=serving.chunked,
        long_prefill_token_threshold=int(flags.get("long_prefill_token_threshold", 0)),
        reserve_full_prompt=bool(flags.get("scheduler_reserve_full_isl", True)) and version.reserve_full_prompt,
        watermark=serving.watermark,
        pipelined=request.pipeline_parallel > 1,
        speculative_tokens=drafts.tokens if drafts else 0,
        lookahead_tokens=drafts.lookahead_tokens if drafts else 0,
    )


__all__ = ["Serving", "rules_of"]
