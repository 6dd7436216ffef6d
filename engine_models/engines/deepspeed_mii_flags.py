"""What DeepSpeed-MII is told: keywords of ``mii.serve``, flags of its two API servers, keys of its engine's configuration.

They follow `mii/config.py` and `mii/entrypoints` of 0.3.3, `deepspeed/inference/v2/config_v2.py` and `ragged/manager_configs.py`
of 0.19.8. The keys of `inference_engine_config.state_manager` are flags of their own too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, keys_of
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError

MANAGER: dict[str, Flag] = {
    "max_ragged_batch_size": Flag("int", 768, low=1),
    "max_ragged_sequence_count": Flag("int", 512, low=1),
    "max_tracked_sequences": Flag("int", 2048, low=1),
    "memory_config": Flag("json", None),
    "max_context": Flag("int", 8192, low=1),
    "offload": Flag("bool", False),
}
"""Keys of `state_manager`. `max_context` is kept by the engine and used nowhere; `offload` it refuses."""

_MEMORY = {"mode": Flag("str", "reserve", choices=("reserve", "allocate")), "size": Flag("int", 1_000_000_000, low=1)}

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel": Flag("int", 1, low=1),
    "replica_num": Flag("int", 1, low=1),
    "max_length": Flag("int", None, low=2),
    "inference_engine_config": Flag("json", None),
    **{key: flag for key, flag in MANAGER.items() if key not in ("max_context", "offload")},
}

_SWITCHES = "allow_credentials enable_restful_api profile_model_time ssl sync_debug"
_HARMLESS = """
    allow_credentials allowed_headers allowed_methods allowed_origins api_keys chat_template deployment_name deployment_type
    device_map enable_restful_api host hostfile max_context port port_number profile_model_time replica_configs response_role
    restful_api_host restful_api_port restful_processes ssl task tokenizer torch_dist_port zmq_port_number
"""
_CHANGING = {"the host's time": "sync_debug"}
_REFUSED = {
    "the format of the weights (FP6 is not simulated)": "quantization_mode",
    "which server answers": "load_balancer",
}
_KINDS = {
    name.partition("=")[0]: "switch" if name in _SWITCHES.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

FLAGS = FlagTable(
    engine="deepspeed_mii",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"-m mii\.entrypoints\.(?:openai_)?api_server",),
        example="python -m mii.entrypoints.openai_api_server --model MODEL --flag value",
        calls=("mii.serve", "mii.pipeline"),
        package="deepspeed-mii",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"model_name_or_path": "model"},
    typed={
        "tensor_parallel": Typed("tensor_parallel"),
        "replica_num": Typed("replicas", lambda value: value if value > 1 else None),
    },
)


def manager(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The state manager's keys with their defaults; InputError for keys that there are not, and for values that cannot be."""
    where = "deployment.engine_args"
    config = _group(flags.get("inference_engine_config"), {"state_manager": Flag("json"), "manager": Flag("json")}, where)
    given = _group(config["state_manager"] or config["manager"], MANAGER, f"{where}.inference_engine_config.state_manager")
    found = given | {key: flags[key] for key in MANAGER if key in flags}
    found["memory_config"] = _group(found["memory_config"], _MEMORY, f"{where}.memory_config")
    if found["offload"]:
        raise InputError(
            "DeepSpeed-MII does not keep KV blocks in host memory: it stops with offload",
            where=f"{where}.inference_engine_config.state_manager.offload",
            mend="remove it",
        )
    for key in ("max_tracked_sequences", "max_ragged_batch_size"):
        if found["max_ragged_sequence_count"] > found[key]:
            raise InputError(
                f"max_ragged_sequence_count {found['max_ragged_sequence_count']} is more than {key} {found[key]}, which the "
                "engine refuses",
                where=f"{where}.max_ragged_sequence_count",
                mend=f"give at most {found[key]}",
            )
    return found


def _group(given: Any, known: Mapping[str, Flag], where: str) -> dict[str, Any]:
    return keys_of(given, known, "DeepSpeed-MII's", where)
