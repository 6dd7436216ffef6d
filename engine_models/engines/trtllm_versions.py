"""How TensorRT-LLM's versions differ, as far as it changes a prediction, and what they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardware_profiles.device import DeviceKind

DEVICES: dict[DeviceKind, str] = {
    "gpu": "NVIDIA/TensorRT-LLM, supported hardware (public copy, read 2026-11): NVIDIA GPUs only",
    "apu": "NVIDIA/dgx-spark-playbooks@0db7c14, nvidia/trt-llm/README.md (2026-07): DGX Spark, the only one",
}

VERSIONS: dict[str, dict[str, Any]] = {
    "1.3.0": {
        "recorded": True,
        "graph_step_above_128": 64,
        "graphs_adapters": True,
        "serial_quantisation": False,
        "pieces_follow": True,
        "generates_blocks": True,
        "claims_first": True,
        "states_by_config": True,
        "one_sided": ("cutlass", "vllm/trtllm", "deepgemm", "vllm/marlin"),
    },
    "1.2.0": {
        "recorded": False,
        "graph_step_above_128": 0,
        "serial_quantisation": True,
        "pieces_follow": False,
        "generates_blocks": False,
        "claims_first": False,
        "states_by_config": False,
        "one_sided": ("cutlass", "vllm/trtllm"),
    },
    "1.0.0": {"graphs_adapters": False, "one_sided": ()},
}
"""The newest first; of each older one what differs from the next newer. `recorded`: whether its scheduling was compared with
recordings; `graph_step_above_128`: step of the padded CUDA-graph sizes (0: they double); `graphs_adapters`: whether steps that
name LoRA adapters run as CUDA graphs (`_torch/peft/lora/cuda_graph_lora_manager.py`, since 1.2). Source: as `trtllm`.
`serial_quantisation`: of FP8 products on data-centre Blackwell (pull requests 6486 of 2025-08, 11607 of 2026-02; before 1.1
another kernel, not timed). `pieces_follow`: whether a prompt's pieces enter a pipeline one behind the other
(`PyExecutor._add_inflight_ids`). `generates_blocks`: whether experts in FP8 blocks run on generated kernels on data-centre
Blackwell by themselves (pull request 14282 of 2026-05). `claims_first`: whether prompts hold what they find in host memory before
any block moves (pull request 13029 of 2026-04). `states_by_config`: whether a config that asks for wider recurrent states than
its weights gets them (`validate_and_set_mamba_ssm_cache_dtype` of `model_loader.py`). `one_sided`: kernels of experts before
which ranks of attention data parallelism write tokens into the memory of their experts' ranks (`select_alltoall_method_type`,
whatever the number of ranks since pull request 8950 of 2025-11; `MOE_DEVELOPER_GUIDE.md`); before others they gather them all."""
