"""Versions of vLLM: which declaration stands for a version that somebody wrote."""

from __future__ import annotations

import pytest

from engine_models.vllm import NEWEST, VERSIONS, version_of
from hardware_profiles.errors import InputError


@pytest.mark.parametrize("name", list(VERSIONS))
def test_two_parts_name_a_series(name: str) -> None:
    assert version_of(name).name == name
    series = name.rsplit(".", 1)[0]
    assert version_of(series).name.startswith(f"{series}.")


def test_between_declared_versions_the_older_one_stands() -> None:
    assert version_of("0.15.0").name != "0.15.1"
    assert version_of("99.0") is NEWEST
    with pytest.raises(InputError, match="older than the oldest"):
        version_of("0.6.3")
