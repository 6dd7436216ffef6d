"""Flags of Dynamo's workers, which start an engine with its own flags and these besides.

They follow `dynamo/common/configuration/groups/runtime_args.py` and `dynamo/{vllm,sglang,trtllm}/backend_args.py` of 0.6 to 1.7
(read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flags import Flag, Unread, Worker

_VALUES = """
    namespace endpoint kv_state_endpoint discovery_backend request_plane response_plane event_plane store_kv migration_limit
    dyn_tool_call_parser dyn_reasoning_parser dyn_default_thinking_mode dyn_structural_tag dyn_structural_tag_scope
    dyn_structural_tag_schema custom_jinja_template endpoint_types dyn_endpoint_types dump_config_to media_output_fs_url
    media_output_http_url health_check_payload model_express_url sleep_mode_level multimodal_embedding_cache_capacity_gb
    tcp_tls_cert_path tcp_tls_key_path tcp_tls_ca_cert_path tcp_tls_server_name tcp_tls_handshake_timeout tcp_tls_client_cert_path
    tcp_tls_client_key_path tcp_tls_client_ca_cert_path nats_tls_ca_cert_path nats_tls_client_cert_path nats_tls_client_key_path
    mm_prompt_template modality encode_endpoint allowed_local_media_path max_file_size_mb gpus_per_node component
    output_modalities
"""
_SWITCHES = """
    fpm_trace enable_local_indexer durable_kv_events exclude_tools_when_tool_choice_none dyn_enable_structural_tag
    use_vllm_tokenizer use_sglang_tokenizer publish_events_and_metrics publish_kv_events use_kv_events frontend_decoding
    multimodal_embedding_cache_publisher tcp_tls_insecure nats_tls_insecure gms_shadow_mode enable_rl enable_multimodal
"""
_IMAGES = """
    multimodal_processor multimodal_encode_worker multimodal_worker multimodal_decode_worker route_to_encoder embedding_worker
    image_diffusion_worker video_generation_worker omni stage_configs_path
"""
_UNREAD = {
    **{name: Unread("value") for name in _VALUES.split()},
    **{name: Unread("pair") for name in _SWITCHES.split()},
    "connector": Unread(
        "list",
        "what is kept of KV caches beyond the device (the engine's own flag states the connector: --kv-transfer-config)",
        neutral=("nixl", "none", "null", "nixl none"),
    ),
    "disagg_config": Unread("value", "flags that stand in a file (write those of one side as flags)", refused=True),
    "disagg_config_key": Unread("value"),
    "engine_request_limit": Unread("value", "how many requests a worker takes (`admission` of the deployment states a limit)"),
}
_ELSEWHERE = dict.fromkeys(_IMAGES.split(), "a flag of Dynamo's workers of images, video and embeddings, which are not simulated")
_SIDES = Flag("str", "agg", choices=("agg", "pd", "prefill", "decode", "prefill_and_decode"))


def _side(flags: Mapping[str, Any]) -> str | None:
    """The role that ``--disaggregation-mode`` states, or the switches that it replaced."""
    mode = flags.get("disaggregation_mode")
    if flags.get("is_prefill_worker") or mode == "prefill":
        return "prefill"
    return "decode" if flags.get("is_decode_worker") or mode == "decode" else None


def worker(*, own_mode: bool = False, modelled: Mapping[str, Flag] | None = None, **more: Any) -> Worker:
    """A worker of an engine; `own_mode` where ``--disaggregation-mode`` is the engine's own; `more` as `Worker` has it."""
    switches = {name: Flag("bool", False) for name in ("is_prefill_worker", "is_decode_worker")}
    sides = {} if own_mode else {"disaggregation_mode": _SIDES, **switches}
    return Worker({**sides, **(modelled or {})}, _UNREAD, elsewhere=_ELSEWHERE, role=_side, **more)
