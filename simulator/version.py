"""The tool's version, part of every run's identity."""

VERSION = "0.1.0"
SCHEMA_VERSION = "1.0"


def build() -> str:
    """Whether the inner loops are interpreted ("plain") or compiled."""
    from importlib.util import find_spec

    found = find_spec("engine_models.parts.batch")
    assert found is not None
    return "plain" if (found.origin or "").endswith(".py") else "compiled"
