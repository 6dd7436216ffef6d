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
PROGRAMS = (
    (r"-m dynamo\.frontend", "dynamo", "router_mode", "round-robin"),
    (r"-m sglang_router\.launch_(?:router|server)|(?:\S*/)?(?:sglang-router|smg)", "sglang-router", "policy", "cache_aware"),
    (r"(?:\S*/)?vllm-router|-m vllm_router\.\S+", "production-stack", "routing_logic", None),
    (r"(?:\S*/)?vllm-router", "vllm-router", "policy", "cache_aware"),
)
"""Patterns of the programs that start them, the system, its flag of the policy, and what this is where it is not given (None: it
always is)."""


def system_named(name: str) -> RouterSystem | None:
    """A router product, None if there is none of that name."""
    module = MODULES.get(RECORDED_AS.get(name, name))
    if module is None:
        return None
    system = import_module(f"simulator.cluster.routing.{module}").SYSTEM
    assert isinstance(system, RouterSystem)
    return system


def spelled_out(word: str) -> list[str]:
    """How a scenario names the products that are called `word`, or have a policy of that name: ``{system: dynamo}``."""
    plain = word.lower().replace("_", "-")
    named = [system for system in (*MODULES, *RECORDED_AS) if system in (plain, f"{plain}-router")]
    if named:
        return [f"{{system: {RECORDED_AS.get(named[0], named[0])}}}"]
    found = []
    for name in MODULES:
        system = system_named(name)
        choices = next((flag.choices for flag in system.flags if flag.name == system.policy_flag), ()) if system else ()
        found += [f"{{system: {name}, policy: {each}}}" for each in choices if each.replace("_", "-") == plain]
    return found
