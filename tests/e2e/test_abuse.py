"""Whatever a file or an option may hold: bounds named in words, nothing raw on the terminal, no endless file, no endless loop."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from hardware_profiles.device import resolve_device
from simulator.cli.printable import printable
from simulator.workload import drawn
from tests.fuzz.inputs import MODELS

from .conftest import Cli, files_below

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")

BOUNDS: dict[str, tuple[str, list[str]]] = {
    "groups beyond 64 bits": ("workload.shared_prefix={groups: 18446744073709551616, tokens: 64}", ["groups", "at most 1e+12"]),
    "periods of no length": (
        "workload.arrivals={kind: onoff, rate_on: 1, rate_off: 1, on_s: 1e-12, off_s: 1e-12}",
        ["on_s", "periods", "poisson"],
    ),
    "gaps of endless spread": ("workload.arrivals={kind: gamma, rate: 2, cv: 1000000}", ["cv is 1e+06", "0.001 to 1000"]),
    "a rate of nothing": ("workload.arrivals.rate=1e-300", ["workload.arrivals.rate", "at least 1e-09"]),
    "a weight of nothing": ("slo={ttft_ms: {p99: 5e-324}}", ["slo.ttft_ms.p99", "at least 1e-12"]),
    "a duration of ages": ("workload.duration=1e+300", ["workload.duration", "at most 1e+12"]),
    "a number of no float": ("workload.duration=1e400", ["infinity"]),
    "a link of no rate": ("deployment.transfer={bytes_per_s: 14.9}", ["bytes_per_s", "at least 1000"]),
    "a link of ages": ("deployment.transfer={latency_s: 1e+9}", ["latency_s", "at most 3600"]),
    "a name that is no path": (f"model={'a' * 400}", ["is not in the catalogue"]),
    "a path of no name": (f"workload={{trace: {'a' * 400}.csv}}", ["a.csv"]),
    "a device for a trace": ("workload={trace: /dev/zero}", ["/dev/zero"]),
    "a device for a model": ("model=/dev/zero", ["/dev/zero"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("command", ["check", "simulate"])
def test_no_number_or_name_is_too_much(case: str, command: str, cli: Cli, tmp_path: Path) -> None:
    setting, words = BOUNDS[case]
    cli(command, "small.yaml", "--set", setting).refused(2, *words)
    assert files_below(tmp_path) == {"small.yaml"}


@pytest.mark.parametrize("key", ["kv_lora_rank", "v_head_dim"])
def test_a_latent_of_no_width_is_refused(key: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({**MODELS[2], key: 0}))
    cli("simulate", "small.yaml", "--set", "model=m.json").refused(2, key, "at least 1")


def test_requests_of_a_report_that_are_no_list(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"benchmarks": [{"requests": {"successful": 0.5}}, 3]}))
    cli("trace", "describe", "t.json").refused(2, "no requests")


def test_a_link_of_weeks_is_waited_for_in_a_moment(cli: Cli, tmp_path: Path) -> None:
    """The decode server looks for the blocks at every empty turn."""
    pools = [{"role": role, "engine": "vllm", "hardware": "h100-sxm-80gb"} for role in ("prefill", "decode")]
    deployment = json.dumps({"pools": pools, "transfer": {"bytes_per_s": 1000.0}})
    told = cli("simulate", "small.yaml", "--json", "--set", f"deployment={deployment}", "--set", "workload.requests=3")
    assert told.code == 0, told.err
    assert told.json()["totals"]["offered"] == 3


def test_bursts_far_beyond_the_mean_rate_are_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "CROWDED_REQUESTS", 1000)
    cli("check", "small.yaml", "--set", "workload.arrivals={kind: gamma, rate: 2, cv: 900}").refused(
        2, "bursts", "cv"
    )


def test_hardware_may_be_named_by_a_number(cli: Cli) -> None:
    short = "deployment.engine_args={max_model_len: 4096}"
    found = cli("check", "small.yaml", "--json", "--set", "deployment.hardware=4090", "--set", short)
    assert found.code == 0, found.err
    assert found.json()["deployment"]["hardware"] == "rtx-4090-24gb"
    for number, device in {"5090": "rtx-5090-32gb", "5080": "rtx-5080-16gb", "4090 laptop": "rtx-4090-laptop-16gb"}.items():
        assert resolve_device(number) == device


@pytest.mark.parametrize("command", ["simulate", "check"])
def test_control_characters_are_written_out(command: str, cli: Cli, tmp_path: Path) -> None:
    name = "\x1b[31mred\x1b[0m\x9b2J\u202egpj\x7f"
    setting = f"name={json.dumps(name)}"
    plain, as_json = (cli(command, "small.yaml", "--set", setting, *more) for more in ([], ["--json"]))
    assert (plain.code, as_json.code) == (0, 0)
    assert not RAW.search(plain.out + plain.err + as_json.out)
    if command == "simulate":
        assert "\\x1b[31mred\\x1b[0m\\u009b2J\\u202egpj\\u007f" in plain.out
        assert as_json.json()["name"] == name


def test_control_characters_of_files_are_written_out(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J.yaml").write_text("- name: x\n")
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens,\x1b[1mmore\n0,5,\x1b[1m,1\n")
    for arguments in (
        ["simulate", "\x1b[2J.yaml"],
        ["trace", "describe", "t.csv"],
        ["trace", "describe", "none\x07.csv"],
        ["check", "small.yaml", "--set", "\x1b[1m=5"],
        ["check", "small.yaml", "--set", "deployment.engine_args=vllm serve x --\x1b[1mflag"],
    ):
        told = cli(*arguments)
        told.refused(2)
        assert not RAW.search(told.err), told.err


def test_bytes_of_a_command_line_that_are_no_text(cli: Cli, tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd\xff")
    for setting in (f"name={odd}", f"{odd}=1", f"model={odd}"):
        cli("check", "small.yaml", "--set", setting).refused(2, "UTF-8" if setting[0] != "o" else "odd")
    (tmp_path / f"{odd}.yaml").write_bytes((tmp_path / "small.yaml").read_bytes())
    told = cli("simulate", f"{odd}.yaml")
    assert (told.code, told.err) == (0, "")
    cli("trace", "describe", f"{odd}.csv").refused(2, "odd\\udcff.csv")


def test_a_line_feed_in_a_value_makes_no_line_of_its_own(cli: Cli) -> None:
    told = cli("check", "small.yaml", "--set", 'model="no\\nerror: such model"')
    told.refused(2, "no\\nerror: such model")


def test_an_endless_value_is_not_quoted_whole(cli: Cli) -> None:
    told = cli("check", "small.yaml", "--set", f"model={'x' * 50_000}")
    told.refused(2, "characters ...]")
    assert len(told.err) < 4_000


def test_a_pipe_is_no_trace(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    cli("trace", "describe", "pipe.csv").refused(2, "no regular file")
    cli("cost", "small.yaml", "--profile", "pipe.csv").refused(2, "no regular file")
    cli("compare", "pipe.csv", "pipe.csv").refused(2, "no regular file")


@pytest.mark.parametrize("text", ['{"a": ' * 9_000, '{"hidden_size": ' + "9" * 9_000 + "}"])
def test_json_that_python_gives_up_on_is_refused(text: str, cli: Cli, tmp_path: Path) -> None:
    for name in ("m.json", "t.json", "t.jsonl"):
        (tmp_path / name).write_text(text)
    cli("check", "small.yaml", "--set", "model=m.json").refused(2, "m.json")
    cli("trace", "describe", "t.json").refused(2, "JSON")
    cli("trace", "describe", "t.jsonl").refused(2, "JSON")
    cli("compare", "t.json", "t.json").refused(2, "JSON")


def test_what_is_printable_stays_the_same_json() -> None:
    text = json.dumps({"a": "\x9b\u202e\x7f\ud800 é"}, ensure_ascii=False)
    assert json.loads(printable(text)) == json.loads(text)
