"""What a LitServe server is told: arguments of `LitAPI` and `LitServer`, and which model stands behind `predict`.

They follow `api.py` and `server.py` of 0.2.19. `model_engine` and `max_length` are no arguments of LitServe: they say whose
`generate` the user's `predict` calls, and up to which length.
"""

from __future__ import annotations

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable
from engine_models.launcher import Launcher

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "model_engine": Flag("str", "transformers", choices=("transformers",)),
    "max_length": Flag("int", None, low=2),
    "max_batch_size": Flag("int", 1, low=1),
    "batch_timeout": Flag("float", 0.0, low=0.0),
    "workers_per_device": Flag("int", 1, low=1),
    "timeout": Flag("float", 30.0, low=1e-3, special=(False, -1)),
    "stream": Flag("bool", False),
}

_HARMLESS = """
    accelerator api_path callbacks disable_openapi_url enable_shutdown_api fast_queue generate_client_file healthcheck_path host
    info_path log_level loggers max_payload_size middlewares model_metadata num_api_servers port precision pretty_logs
    restart_workers shutdown_path spec track_requests
"""
_REFUSED = {
    "which devices share the queue (write `replicas`, each with a queue of its own)": "devices=auto|1",
    "who forms the batches (only those of LitServe itself are simulated)": "loop=auto",
    "what one worker computes at once": "enable_async",
}
_KINDS = {
    name.partition("=")[0]: "switch" if name == "enable_async" else "value"
    for text in (_HARMLESS, *_REFUSED.values())
    for name in text.split()
}

FLAGS = FlagTable(
    engine="litserve",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(),
        example="litserve.LitServer(api, max_batch_size=8, batch_timeout=0.05)",
        calls=("litserve.LitServer",),
        first=("max_batch_size", "batch_timeout", "stream", "enable_async"),
        package="litserve",
    ),
    unread=classified(_KINDS, _HARMLESS, {}, _REFUSED),
    aliases={"request_timeout": "timeout"},
)
