"""The tool's version, part of every run's identity."""

VERSION = "0.1.0"
SCHEMA_VERSION = "1.0"
