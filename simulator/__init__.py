"""capacity-plan: what serving a language model will cost and how it will feel, before the hardware is there.

    from simulator import load_scenario, simulate

    run = simulate(load_scenario("scenario.yaml"))
    run.result["metrics"]["ttft_ms"]["p99"]
    run.requests_frame()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.version import VERSION as __version__

if TYPE_CHECKING:
    from simulator.config.load import load_scenario
    from simulator.run import RunResult, simulate

__all__ = ["RunResult", "__version__", "load_scenario", "simulate"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for; the command line starts quickly without them."""
    if name == "load_scenario":
        from simulator.config.load import load_scenario

        return load_scenario
    if name in ("RunResult", "simulate"):
        import simulator.run

        return getattr(simulator.run, name)
    raise AttributeError(f"module 'simulator' has no attribute '{name}'")
