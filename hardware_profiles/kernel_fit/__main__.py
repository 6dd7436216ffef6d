"""``python -m hardware_profiles.kernel_fit TABLES [OUT] [DEVICE...]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hardware_profiles import kernel_model as km
from hardware_profiles.kernel_fit.write import fit_kernels


def main(argv: Sequence[str]) -> None:
    """``kernel_fit TABLES [OUT] [DEVICE...]``."""
    out = Path(argv[1]) if len(argv) > 1 else km.KERNELS_DIR
    fit_kernels(Path(argv[0]), out, list(argv[2:]) or None)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
