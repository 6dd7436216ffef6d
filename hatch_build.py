"""Build hook: compiles the modules of a simulation's inner loops where `HATCH_BUILD_HOOK_ENABLE_MYPYC=1` asks for it.

The same source runs interpreted and compiled, with the same results to the bit. Which modules are compiled stands in
`pyproject.toml`. Without a C compiler the wheel is the plain one, with a warning.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "HATCH_BUILD_HOOK_ENABLE_MYPYC"


def wanted() -> bool:
    """Whether the environment asks for compiled modules."""
    return os.environ.get(SWITCH, "").lower() in ("1", "true")


class CompiledModules(BuildHookInterface[Any]):
    """hatch-mypyc, or nothing where it cannot work."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What only a compiled build needs; numpy for its types."""
        return [*self.config["compiler"], "numpy>=1.26"] if wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is packed."""
        if not wanted():
            return
        from hatch_mypyc.plugin import MypycBuildHook

        hook = MypycBuildHook(
            self.root, self.config, self.build_config, self.metadata, self.directory, self.target_name, self.app
        )
        try:
            hook.initialize(version, build_data)
        except (Exception, SystemExit) as failed:
            hook.clean([version])
            print(f"warning: not compiled, this is the plain build: {failed}", file=sys.stderr)
            return
        self._compiled = hook

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing compiled in the source tree, where it would be run in the source's stead."""
        if wanted() and (hook := getattr(self, "_compiled", None)):
            hook.clean([version])
