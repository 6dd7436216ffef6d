"""The tool's version, part of every run's identity."""

VERSION = "0.1.0"
SCHEMA_VERSION = "1.0"


def build() -> str:
    """Whether the inner loops are interpreted ("plain") or compiled."""
    from engine_models.parts import batch

    return "plain" if batch.__file__.endswith(".py") else "compiled"
