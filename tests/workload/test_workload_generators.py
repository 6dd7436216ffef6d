from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator.workload import generators
from simulator.workload.build import build_workload
from simulator.workload.describe import describe
from simulator.workload.spec import WorkloadSpec

TRACES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "traces"
ORIGINALS = {
    "azure-conv-2023": "azure2023_conv.parquet",
    "azure-code-2023": "azure2023_code.parquet",
    "mooncake-conversation": "mooncake_conversation.parquet",
}
# Published figures of the first 40 minutes: rate, prompt mean and p50, output mean and p50 of each trace.
FIGURES = {
    "azure-conv-2023": (5.91, 1195, 1015, 201, 115),
    "azure-code-2023": (3.13, 2040, 1465, 28, 13),
    "mooncake-conversation": (3.28, 12428, 7284, 347, 356),
}


def stats(trace: str, seed: int = 0, base: Path = Path()) -> dict:  # type: ignore[type-arg]
    return describe(build_workload(WorkloadSpec(trace=trace), seed=seed, base_dir=base))


def test_names_and_provenance() -> None:
    assert generators.names() == sorted(ORIGINALS)
    for name in ORIGINALS:
        source = generators.parameters(name)["source"]
        assert {"ref", "licence", "date", "fit", "sha256"} <= source.keys()
        assert (generators.FOLDER / f"{name}.json").stat().st_size < 40_000
    with pytest.raises(InputError, match="azure-code-2023"):
        generators.parameters("azure-code")


@pytest.mark.parametrize("name", ORIGINALS)
def test_close_to_the_published_figures(name: str) -> None:
    s = stats(name)
    rate, prompt_mean, prompt_p50, output_mean, output_p50 = FIGURES[name]
    assert s["rate_per_s"] == pytest.approx(rate, rel=0.05)
    assert s["prompt_tokens"]["mean"] == pytest.approx(prompt_mean, rel=0.05)
    assert s["prompt_tokens"]["p50"] == pytest.approx(prompt_p50, rel=0.05)
    assert s["output_tokens"]["mean"] == pytest.approx(output_mean, rel=0.07)
    assert s["output_tokens"]["p50"] == pytest.approx(output_p50, rel=0.03, abs=1)


@pytest.mark.parametrize("name", ORIGINALS)
def test_like_the_original(name: str) -> None:
    if not TRACES.is_dir():
        pytest.skip(f"{TRACES} is absent")
    original = stats(ORIGINALS[name], base=TRACES)
    drawn = [stats(name, seed) for seed in range(10)]

    def mean(*path: str) -> tuple[float, float]:
        values = []
        for s in [original, *drawn]:
            for key in path:
                s = s[key]
            values.append(s)
        return float(np.mean(values[1:])), values[0]

    def close(path: tuple[str, ...], rel: float, absolute: float = 0.0) -> None:
        ours, theirs = mean(*path)
        assert ours == pytest.approx(theirs, rel=rel, abs=absolute), path

    close(("rate_per_s",), 0.03)
    close(("iat_cv",), 0.08)
    close(("idc", "1s"), 0.1)
    close(("idc", "10s"), 0.15)
    close(("idc", "60s"), 0.15)
    for tokens in ("prompt_tokens", "output_tokens"):
        close((tokens, "mean"), 0.03)
        for q in ("p50", "p90"):
            close((tokens, q), 0.05, absolute=1)
        close((tokens, "p99"), 0.06)
    close(("rank_correlation",), 0, absolute=0.03)
    close(("prefix_hit_potential",), 0, absolute=0.02)


def test_spikes_are_kept() -> None:
    conv = generators.generate("azure-conv-2023", seed=0)
    _, counts = np.unique(conv.prompt_tokens, return_counts=True)
    assert counts.max() / len(conv) > 0.005
    code = generators.generate("azure-code-2023", seed=0)
    minutes = np.bincount((code.arrival_s // 60).astype(int), minlength=40)
    assert (minutes == 0).sum() >= 5  # the trace has whole minutes without a request


def test_the_shipped_parameters_are_what_derive_writes() -> None:
    if not TRACES.is_dir():
        pytest.skip(f"{TRACES} is absent")
    from simulator.workload.derive import derive

    for name, fitted in derive(TRACES).items():
        shipped = json.loads((generators.FOLDER / f"{name}.json").read_text())
        assert json.loads(json.dumps(fitted)) == shipped, name


def test_rate_scale_duration_requests_and_window() -> None:
    def build(**spec: object):  # type: ignore[no-untyped-def]
        form = WorkloadSpec.model_validate({"trace": "azure-conv-2023", **spec})
        return build_workload(form, seed=1, base_dir=Path())

    plain = build(duration=600)
    assert plain.arrival_s.max() < 600
    assert plain.duration_s == 600
    double = build(duration=300, rate_scale=2)
    assert np.array_equal(double.arrival_s * 2, plain.arrival_s)
    assert len(build(requests=500)) == 500
    cut = build(window=[60, 120])
    assert cut.duration_s == 60
    assert cut.arrival_s.max() < 60
    long = build(duration=4800)
    assert len(long) == pytest.approx(2 * len(build(duration=2400)), rel=0.05)


def test_conversations_share_only_what_was_there() -> None:
    rows = generators.generate("mooncake-conversation", seed=2, until_s=600)
    content = rows.content
    assert content is not None
    counts = np.diff(content.start)
    totals = np.add.reduceat(content.length, content.start[:-1])
    assert (counts >= 1).all()
    assert (totals <= rows.prompt_tokens).all()
    assert (content.length > 0).all()
    assert (content.segment[content.start[:-1]] == 0).all()  # the system prompt comes first


def test_a_long_run_keeps_the_rate_of_conversations() -> None:
    rows = generators.generate("mooncake-conversation", seed=0, until_s=12_000)
    counts = np.bincount((rows.arrival_s // 2400).astype(int))
    assert counts == pytest.approx([7851] * 5, rel=0.06)
