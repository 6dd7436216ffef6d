"""What Triton is told: keys of a model's `config.pbtxt`, and flags of `tritonserver`, which say nothing of batches.

They follow `model_config.proto` and the command line of server 2.71 (core at 73aad7c, 2026-06). `model_engine` and `max_length`
are no keys of Triton: they say whose `generate` the model calls, and up to which length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, typed_value
from engine_models.launch import Launcher
from hardware_profiles.errors import InputError, nearest

POLICY: dict[str, Flag] = {
    "timeout_action": Flag("str", "REJECT", choices=("REJECT", "DELAY")),
    "default_timeout_microseconds": Flag("int", 0, low=0),
    "allow_timeout_override": Flag("bool", False),
    "max_queue_size": Flag("int", 0, low=0),
}
BATCHING: dict[str, Flag] = {
    "preferred_batch_size": Flag("ints", None, low=1),
    "max_queue_delay_microseconds": Flag("int", 0, low=0),
    "preserve_ordering": Flag("bool", False),
    "priority_levels": Flag("int", 0, low=0),
    "default_priority_level": Flag("int", 0, low=0),
    "default_queue_policy": Flag("json"),
    "priority_queue_policy": Flag("json"),
}
GROUP: dict[str, Flag] = {
    "count": Flag("int", 1, low=1),
    "kind": Flag("str", "KIND_AUTO", choices=("KIND_AUTO", "KIND_GPU", "KIND_CPU")),
    "gpus": Flag("ints"),
}
"""Keys of a queue policy, of `dynamic_batching` and of an `instance_group`."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "model_engine": Flag("str", "transformers", choices=("transformers", "trtllm")),
    "max_length": Flag("int", None, low=2),
    "max_batch_size": Flag("int", 0, low=0),
    "instance_group": Flag("json"),
    "dynamic_batching": Flag("json"),
    "decoupled": Flag("bool", False),
}

_HARMLESS = """
    allow_cpu_metrics allow_gpu_metrics allow_grpc allow_http allow_metrics backend backend_config backend_directory
    buffer_manager_thread_count cuda_memory_pool_byte_size disable_auto_complete_config exit_on_error exit_timeout_secs
    grpc_address grpc_port host_policy http_address http_port http_thread_count id load_model log_error log_file log_info
    log_verbose log_warning metrics_interval_ms metrics_port min_supported_compute_capability model_control_mode
    model_load_thread_count model_namespacing model_repository model_store name pinned_memory_pool_byte_size platform
    repoagent_directory repository_poll_secs reuse_grpc_port reuse_http_port strict_model_config strict_readiness trace_config
"""
_REFUSED = {
    "which requests are answered without the model": "cache_config response_cache response_cache_byte_size",
    "which instances may run at once": "rate_limit=off rate_limit_resource rate_limiter",
    "how a request is passed from model to model": "ensemble_scheduling sequence_batching",
}
_KINDS = {
    name.partition("=")[0]: "value" for text in (_HARMLESS, *_REFUSED.values()) for name in text.split()
}

FLAGS = FlagTable(
    engine="triton",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"tritonserver",),
        example="tritonserver --model-repository /models",
        image=r"[^\s:=]*nvidia/tritonserver[^\s:=]*",
    ),
    unread=classified(_KINDS, _HARMLESS, {}, _REFUSED),
)


def group(given: Any, known: Mapping[str, Flag], where: str) -> dict[str, Any]:
    """Keys of a group with their defaults; InputError for keys that there are not, and for values that cannot be."""
    found = {key: flag.default for key, flag in known.items()}
    if given is not None and not isinstance(given, Mapping):
        raise InputError("this is no group of keys", where=where, mend="write {key: value}")
    for key, value in (given or {}).items():
        if key not in known:
            close = nearest(str(key), list(known))
            raise InputError(
                f"Triton's configuration has no key `{key}` here that is simulated",
                where=f"{where}.{key}",
                mend=f"did you mean `{close}`?" if close else "remove it, or check its spelling",
            )
        found[key] = typed_value(known[key], str(key), value)
    return found
