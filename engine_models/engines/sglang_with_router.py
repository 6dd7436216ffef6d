"""``python -m sglang_router.launch_server``: a router and ``--dp-size`` servers of SGLang behind it, which take its flags.

The router's own flags begin with ``--router-`` (`sglang_router/launch_server.py`, `router_args.py` of 0.2 and 0.3; from public
mentions of them and the recorded router's flags, read 2026-11).
"""

from __future__ import annotations

from engine_models.flags import Flag, Unread, Worker

_VALUES = """
    policy prefill_policy decode_policy cache_threshold balance_abs_threshold balance_rel_threshold eviction_interval
    eviction_interval_secs max_tree_size max_idle_secs assignment_mode bucket_adjust_interval_secs worker_startup_timeout_secs
    worker_startup_check_interval max_payload_size log_dir log_level api_key prometheus_host prometheus_port request_id_headers
    max_concurrent_requests queue_size queue_timeout_secs rate_limit_tokens_per_second request_timeout_secs retry_max_retries
    retry_initial_backoff_ms retry_max_backoff_ms retry_backoff_multiplier retry_jitter_factor cb_failure_threshold
    cb_success_threshold cb_timeout_duration_secs cb_window_duration_secs health_check_interval_secs health_check_timeout_secs
    health_failure_threshold health_success_threshold health_check_endpoint cors_allowed_origins model_path tokenizer_path
"""
_SWITCHES = "dp_aware disable_retries disable_circuit_breaker enable_igw"
_ROLES = ("pd_disaggregation", "mini_lb")

WITH_ROUTER = Worker(
    modelled={"server_copies": Flag("int", 1, low=1)},
    unread={
        **{f"router_{name}": Unread("value") for name in _VALUES.split()},
        **{f"router_{name}": Unread("switch") for name in _SWITCHES.split()},
        **{
            f"router_{name}": Unread("switch", "which servers there are (pools of a scenario say it)", refused=True)
            for name in _ROLES
        },
        "server_port": Unread("value"),
    },
    aliases=dict.fromkeys(("dp_size", "data_parallel_size", "dp"), "server_copies"),
    copies="server_copies",
)
"""What it takes beside SGLang's flags."""
