"""Router products by name, the one place that lists them."""

from __future__ import annotations

from importlib import import_module

from simulator.cluster.routing.system import RouterSystem

MODULES = {
    "sglang-router": "sglang_router",
    "vllm-router": "vllm_router",
    "dynamo": "dynamo",
    "production-stack": "production_stack",
    "llm-d": "llm_d",
}
"""Module of each system by the name in a scenario."""
RECORDED_AS = {
    "dynamo-kv-router": "dynamo",
    "vllm-production-stack": "production-stack",
    "gateway-api-inference-extension": "llm-d",
}
"""Other names of these, in recordings and scenarios."""


def system_named(name: str) -> RouterSystem | None:
    """A router product, None if there is none of that name."""
    module = MODULES.get(RECORDED_AS.get(name, name))
    if module is None:
        return None
    system = import_module(f"simulator.cluster.routing.{module}").SYSTEM
    assert isinstance(system, RouterSystem)
    return system
