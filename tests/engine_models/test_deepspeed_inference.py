"""DeepSpeed-Inference and ZeRO-Inference: groups and workspaces, weights that are streamed, flags, refusals; timelines by
hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.cost.weight_stream import Stream, Streamed
from engine_models.declaration import PoolRequest
from engine_models.engines.deepspeed_inference import plan
from engine_models.engines.known import parse_engine_args
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.workspace import WorkspaceScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import RunResult, simulate
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock

OPT = "facebook/opt-30b"
CPU = {"stage": 3, "offload_param": {"device": "cpu"}}
NVME = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}}


def request_of(model: str = OPT, device: str = "rtx-a6000-48gb", tp: int = 1, weights: str = "fp16", **flags: Any) -> PoolRequest:
    fp16, found = format_named("fp16"), load_device(device)
    link = found.pcie_bytes_per_s_per_direction
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), fp16, fp16),
        device_name=device,
        device_memory_bytes=int(found.memory_bytes.value),
        tensor_parallel=tp,
        flags=flags,
        host_link_bytes_per_s=link.value if link else 0.0,
    )


def served(rows: int, tokens: int, asked: list[tuple[int, int]], *, aggregate: bool = False) -> list[Sequence]:
    """Requests (prompt, output) that arrive at once, after their groups."""
    scheduler = WorkspaceScheduler(rows, tokens, aggregate=aggregate)
    seqs = [Sequence(index, prompt, output, 0.0) for index, (prompt, output) in enumerate(asked)]
    replica = Replica([scheduler], RecordedClock({"a": 0.01, "b": 0.0, "c": 0.0, "d": 0.0}))
    for seq in seqs:
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    return seqs


@pytest.mark.parametrize("aggregate", [True, False])
def test_a_timeline_of_a_group(*, aggregate: bool) -> None:
    """`generate` of transformers, which the caller runs: padded to the longest, until the last ends; the third waits for both."""
    seqs = served(2, 64, [(10, 3), (20, 5), (8, 2)], aggregate=aggregate)
    assert [seq.emissions for seq in seqs] == [[0, 2], [0, 4], [5, 6]]


@pytest.mark.parametrize("aggregate", [True, False])
def test_a_timeline_of_a_workspace(*, aggregate: bool) -> None:
    """config.py:261 `max_out_tokens` counts prompt and answer of a row, and all rows are as long as the longest prompt: 20 + 13
    - 1 tokens are in 32, so that of 20 tokens that the first asks for 13 come, and then the group fails; the next begins."""
    seqs = served(2, 32, [(10, 20), (20, 5), (8, 2)], aggregate=aggregate)
    assert [seq.emissions for seq in seqs] == [[0, 12], [0, 4], [13, 14]]


def test_a_timeline_of_streamed_weights() -> None:
    """2022-09-10-zero-inference.md:17: 60 GB at 24 GB/s take 2.5 s in every step, with 1 row and with 64, behind a layer's 1.25
    GB; a step that computes longer takes what it computes (line 21)."""
    clock = RecordedClock({"a": 0.01, "b": 0.001, "c": 0.001, "d": 0.0})
    cost = Streamed(clock, Stream(60e9, 1.2e9, 0.0, 24e9))
    for rows in (1, 64):
        assert cost.step_s([Batch(0, rows, rows, rows * 100, tokens=rows)])[0] == pytest.approx(2.55)
    assert cost.step_s([Batch(0, prefill=[(4096, 0)], tokens=4096)])[0] == pytest.approx(0.01 + 4.096 + 0.05)
    on_host = Streamed(clock, Stream(60e9, 1.2e9, 1.4e6, 24e9))
    shape = Batch(0, 64, 64, 64 * 500, tokens=64)
    assert on_host.step_s([shape])[0] == pytest.approx(2.55 + 64 * 500 * 1.4e6 / 24e9)


def test_a_run_is_its_steps() -> None:
    """To the last bit, where the link and where the device takes longer."""
    clock = RecordedClock({"a": 0.01, "b": 0.001, "c": 0.03, "d": 1e-6})
    for token_bytes in (0.0, 1e5):
        cost = Streamed(clock, Stream(7e9, 1e8, token_bytes, 24e9))
        shape = Batch(0, 8, 8, 8 * 500, tokens=8)
        steps = [cost.step_s([Batch(0, 8, 8, 8 * (500 + i), tokens=8)])[0] for i in range(300)]
        assert cost.run_s([shape], 300).tolist() == steps
        assert cost.few_s([shape], 40) == steps[:40]


def test_weights_on_the_host_leave_memory_for_rows() -> None:
    """1e9 live parameters of 2 bytes instead of 60 GB of weights; 24 of the nominal 32 GB/s of its PCIe link."""
    found = plan(request_of(zero=CPU))
    assert found.memory.bytes_of("weight") == 2_000_000_000
    stream = found.costs.stream
    assert stream is not None
    assert stream.step_bytes == pytest.approx(60e9, rel=0.01)
    assert stream.bytes_per_s == pytest.approx(24e9)
    assert stream.first_bytes == stream.step_bytes / 48
    disk = plan(request_of(zero=NVME)).costs.stream
    assert disk is not None
    assert disk.bytes_per_s == 5e9
    assert plan(request_of("facebook/opt-6.7b")).costs.stream is None
    with pytest.raises(InfeasibleError, match="does not fit") as error:
        plan(request_of())
    assert "streams the weights from host memory" in str(error.value.mend)


def test_a_workspace_is_set_aside() -> None:
    found = plan(request_of("facebook/opt-6.7b", replace_with_kernel_inject=True, batch_size=4, max_out_tokens=512))
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, WorkspaceScheduler)
    assert (scheduler.rows, scheduler.row_tokens) == (4, 512)
    assert (found.limits.prompt_tokens, found.limits.row_tokens, found.costs.terms.gather_factor) == (511, 512, 0.0)
    assert plan(request_of("facebook/opt-6.7b")).costs.terms.gather_factor == 2.0
    with pytest.raises(InfeasibleError, match=r"4,000 workspaces of 1,024 tokens"):
        plan(request_of("facebook/opt-6.7b", replace_with_kernel_inject=True, batch_size=4000))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"zero": CPU, "tp": 2}, "several devices that fetch the weights together"),
        ({"zero": CPU, "replace_with_kernel_inject": True}, "kernels are injected where weights stay"),
        ({"zero": {"stage": 2, "offload_param": {"device": "cpu"}}}, "stage 3 only, not with 2"),
        ({"zero": {"stage": 3, "offload_params": {}}}, "no key `offload_params`"),
        ({"kv_offload": True}, "with ZeRO-Inference only"),
        ({"weights": "int4"}, "weights in 4 bits are ZeRO-Inference's"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite"}, "latent, recurrent or sparse"),
    ],
)
def test_what_it_lacks_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**request_))
    assert error.value.mend


def test_a_call_of_the_library() -> None:
    found = parse_engine_args(
        "deepspeed_inference",
        "model = deepspeed.init_inference(model, mp_size=2, dtype=torch.float16, replace_with_kernel_inject=True,\n"
        "    max_tokens=2048)",
    )
    assert found.values == {
        "mp_size": 2,
        "dtype": "float16",
        "replace_with_kernel_inject": True,
        "max_out_tokens": 2048,
    }
    with pytest.raises(InputError, match="which ranks hold which experts"):
        parse_engine_args("deepspeed_inference", {"ep_size": 4})
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("deepspeed_inference", {"max_num_seqs": 4})


def test_larger_groups_take_no_longer() -> None:
    """The shipped scenario: a step takes 2.5 s whatever its rows, so four times the rows give nearly four times the tokens."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "offline-zero-inference-a6000.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))

    def run(rows: int, **pool: Any) -> RunResult:
        args = {**scenario["deployment"]["engine_args"], "batch_size": rows}
        return simulate({**scenario, "deployment": {**scenario["deployment"], "engine_args": args, **pool}})

    few, many, small = run(8), run(32), run(32, weights="int4")
    rates = [found.result["totals"]["output_throughput"] for found in (few, many, small)]
    assert 3.2 < rates[1] / rates[0] < 4.0
    assert rates[2] > 3 * rates[1]
    steps = np.asarray([found.result["metrics"]["itl_ms"]["p50"] for found in (few, many)])
    assert steps.tolist() == pytest.approx([2550.0, 2550.0], rel=0.01)
