"""Scenario files, dicts and names: what is accepted, and what is said about the rest."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.known import parse_engine_args
from hardware_profiles.errors import InputError
from simulator.config import load as load_module
from simulator.config.load import json_schema, load_scenario, resolved, scenario_hash, shipped_scenarios
from simulator.config.located import MAX_FILE_BYTES, read_yaml, scalar
from simulator.config.problems import ScenarioError
from tests.effort import examples

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SMALLEST = f"""\
model: {MODEL}
deployment: {{engine: vllm, hardware: h100-sxm-80gb, replicas: 2}}
workload:
  arrivals: {{kind: poisson, rate: 12}}
  prompt_tokens: {{kind: lognormal, mean: 512, p99: 4000}}
  output_tokens: {{kind: lognormal, mean: 180, p99: 900}}
  duration: 600
"""


def write(folder: Path, text: str | bytes, name: str = "case.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(source: Any, overrides: tuple[str, ...] = ()) -> list[InputError]:
    with pytest.raises(InputError) as caught:
        load_scenario(source, overrides)
    error = caught.value
    return list(error.problems) if isinstance(error, ScenarioError) else [error]


def only_problem(source: Any, overrides: tuple[str, ...] = ()) -> InputError:
    found = problems_of(source, overrides)
    assert len(found) == 1, [str(p) for p in found]
    assert found[0].mend, "every problem names its mend"
    return found[0]


# Accepted -------------------------------------------------------------------------------------------------


def test_the_smallest_scenario_has_every_default(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, SMALLEST, "peak-hour.yaml"))
    assert (scenario.name, scenario.seed, scenario.model) == ("peak-hour", 0, MODEL)
    (pool,) = scenario.deployment.pools
    assert (pool.name, pool.role, pool.replicas, pool.tensor_parallel) == ("pool0", "mixed", 2, 1)
    assert (scenario.deployment.router, scenario.client.overhead_ms) == ("round_robin", 0.0)
    assert scenario.slo.attainment is None
    assert scenario.cost.commitment is None


def test_engine_and_hardware_pass_as_text_for_the_catalogues_to_judge() -> None:
    text = SMALLEST.replace("vllm", "my-engine@1.2").replace("h100-sxm-80gb", "abacus-1gb")
    (pool,) = load_scenario(text).deployment.pools
    assert (pool.engine, pool.hardware) == ("my-engine@1.2", "abacus-1gb")


def test_pools_may_be_a_list() -> None:
    text = SMALLEST.replace(
        "{engine: vllm, hardware: h100-sxm-80gb, replicas: 2}",
        "{router: least_requests, pools: [{engine: vllm, hardware: a}, {name: big, engine: e, hardware: b}]}",
    )
    deployment = load_scenario(text).deployment
    assert [pool.name for pool in deployment.pools] == ["pool0", "big"]
    assert deployment.router == "least_requests"


def test_resolved_is_json_and_loads_to_the_same_scenario() -> None:
    text = SMALLEST + "slo: {ttft_ms: {p99: 500}, attainment: 0.9}\ncost: {spot: true}\nseed: 7\n"
    scenario = load_scenario(text, ["deployment.engine_args=-tp 2 --max-num-seqs 64"])
    data = resolved(scenario)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    again = load_scenario(data)
    assert again == scenario
    assert list(resolved(again)) == list(data)
    assert data["cost"]["commitment"] == "spot"
    assert data["deployment"]["pools"][0]["tensor_parallel"] == 2


@settings(max_examples=examples(40))
@given(
    rate=st.floats(1e-3, 1e4),
    replicas=st.integers(1, 500),
    seed=st.integers(0, 2**40),
    bound=st.none() | st.floats(1, 1e5),
    flags=st.dictionaries(st.sampled_from(["max_num_seqs", "max_num_batched_tokens"]), st.integers(1, 9999)),
)
def test_any_valid_scenario_survives_the_round_trip(
    rate: float, replicas: int, seed: int, bound: float | None, flags: dict[str, int]
) -> None:
    data: dict[str, Any] = {
        "seed": seed,
        "model": MODEL,
        "deployment": {"engine": "vllm", "hardware": "h", "replicas": replicas, "engine_args": flags},
        "workload": {
            "arrivals": {"kind": "poisson", "rate": rate},
            "prompt_tokens": 100,
            "output_tokens": {"kind": "uniform", "low": 1, "high": 9},
            "duration": 5,
        },
        "slo": {"tpot_ms": {"p90": bound}} if bound else {},
    }
    scenario = load_scenario(data)
    text = json.dumps(resolved(scenario))
    assert load_scenario(json.loads(text)) == scenario
    assert scenario_hash(load_scenario(json.loads(text)), "1") == scenario_hash(scenario, "1")


def test_numpy_values_and_paths_in_a_dict_are_plain_values() -> None:
    import numpy as np

    data = load_scenario(SMALLEST).model_dump()
    data["seed"] = np.int64(5)
    data["workload"]["arrivals"]["rate"] = np.float64(3.5)
    scenario = load_scenario(data)
    assert scenario.seed == 5
    assert scenario.workload.arrivals is not None
    assert resolved(scenario)["workload"]["arrivals"]["rate"] == 3.5


def test_a_shipped_name_is_found_and_a_slip_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, SMALLEST, "azure-conv-h100.yaml")
    monkeypatch.setattr(load_module, "shipped_scenarios", lambda: {"azure-conv-h100": path})
    assert load_scenario("azure-conv-h100").name == "azure-conv-h100"
    assert "azure-conv-h100" in str(only_problem("azure-conv-h10").mend)


def test_every_shipped_scenario_loads() -> None:
    for name in load_module.shipped_scenarios():
        assert load_scenario(name).name


def test_merge_keys_and_aliases_are_understood() -> None:
    text = """\
model: m
deployment:
  pools:
    - &base {name: a, engine: vllm, hardware: h, replicas: 3}
    - {<<: *base, name: b, replicas: 5}
workload: {trace: azure-conv-2023}
"""
    pools = load_scenario(text).deployment.pools
    assert [(p.name, p.hardware, p.replicas) for p in pools] == [("a", "h", 3), ("b", "h", 5)]


def test_numbers_follow_yaml_1_2() -> None:
    cases = {"1e3": 1000.0, "-2": -2, "1_000": 1000, "0x10": 16, "0o17": 15, "017": 17, ".5": 0.5, "5.": 5.0}
    assert {text: scalar(text) for text in cases} == cases
    for word in ("on", "yes", "12:30", "12ms", "1.2.3", "2024-01-01", "+", ".", "e3", "9" * 5000):
        assert scalar(word) == word
    assert read_yaml("a: '12'", "x", []).plain() == {"a": "12"}


@settings(max_examples=examples(100))
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15))
def test_a_number_reads_back_as_itself(number: float) -> None:
    assert scalar(repr(number)) == number


# Paths ----------------------------------------------------------------------------------------------------


def with_trace(name: str) -> str:
    return SMALLEST.split("workload:")[0] + f"workload: {{trace: {name}}}\n"


def test_files_are_found_beside_the_scenario_then_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, working = tmp_path / "beside", tmp_path / "working"
    beside.mkdir()
    working.mkdir()
    monkeypatch.chdir(working)
    scenario = write(beside, with_trace("t.csv"))
    assert "there is no file 't.csv'" in only_problem(scenario).message
    write(working, "x", "t.csv")
    assert load_scenario(scenario).workload.trace == str((working / "t.csv").resolve())
    write(beside, "y", "t.csv")
    assert load_scenario(scenario).workload.trace == str((beside / "t.csv").resolve())


def test_a_name_that_is_no_file_stays_a_name(tmp_path: Path) -> None:
    assert load_scenario(write(tmp_path, with_trace("azure-conv-2023"))).workload.trace == "azure-conv-2023"


def test_a_model_folder_becomes_its_config(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    write(tmp_path / "org" / "model", "{}", "config.json")
    scenario = load_scenario(write(tmp_path, SMALLEST.replace(MODEL, "org/model")))
    assert scenario.model == str((tmp_path / "org" / "model" / "config.json").resolve())


# The hash -------------------------------------------------------------------------------------------------


def test_the_hash_depends_on_seed_version_and_content_but_not_on_the_place(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    hashes = []
    for folder in folders:
        folder.mkdir()
        write(folder, "arrival_s\n1\n", "t.csv")
        hashes.append(scenario_hash(load_scenario(write(folder, with_trace("t.csv"))), "1.0"))
    assert hashes[0] == hashes[1]
    write(folders[1], "arrival_s\n2\n", "t.csv")
    scenario = load_scenario(folders[1] / "case.yaml")
    changed = {scenario_hash(scenario, "1.0"), scenario_hash(scenario, "1.1"), hashes[0]}
    changed.add(scenario_hash(load_scenario(folders[1] / "case.yaml", ["seed=1"]), "1.0"))
    assert len(changed) == 4


def test_the_hash_ignores_key_order_spelling_of_numbers_and_defaults_written_out() -> None:
    other = """\
workload:
  duration: 600.0
  output_tokens: {p99: 900, kind: lognormal, mean: 1.8e2}
  prompt_tokens: {kind: lognormal, mean: 512, p99: 4_000}
  arrivals: {rate: 12.0, kind: poisson}
seed: 0
deployment: {pools: [{hardware: h100-sxm-80gb, replicas: 2, engine: vllm, tensor_parallel: 1}]}
model: meta-llama/Llama-3.1-8B-Instruct
"""
    assert scenario_hash(load_scenario(SMALLEST), "1") == scenario_hash(load_scenario(other), "1")


def test_the_hash_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import sys; from simulator.config.load import load_scenario, scenario_hash;"
        "print(scenario_hash(load_scenario(sys.argv[1]), '1'))"
    )
    here = scenario_hash(load_scenario(SMALLEST), "1")
    for seed in ("1", "4242"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, SMALLEST],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout.strip() == here


def test_importing_the_loader_does_not_import_pydantic() -> None:
    heavy = "('pydantic', 'pandas', 'scipy')"
    code = f"import sys, simulator.config.load; sys.exit(any(m in sys.modules for m in {heavy}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# Refused: the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", None, "empty"),
        ("# only a comment\n", None, "empty"),
        (b"model: a\n\x00\x01\x02", 2, "binary"),
        ("model: a\nname: b\n".encode("utf-16"), 1, "binary"),
        (b"model: a\nname: \xff\xfe\n", 2, "UTF-8"),
        ("model: a\nname: \x07\n", 2, "not allowed"),
        ("model: a\ndeployment:\n\tengine: vllm\n", 3, "tab"),
        ("model: a\ndeployment: {engine: vllm, hardware: h\n", None, "bracket opened in line 2"),
        ("model: a\nworkload: {trace: [1, 2\n", None, "bracket opened in line 2"),
        ("model: a\ndeployment: [\n", None, "before the bracket is closed"),
        ('model: a\nname: "unfinished\n', None, "quoted text opened in line 2"),
        ("model: a\n name: b\n", 2, "does not fit"),
        ("model: a\nname: b: c\n", 2, "does not fit"),
        ("- model: a\n", 1, "group of keys"),
        ("just words\n", 1, "group of keys"),
        ("---\nmodel: a\n---\nmodel: b\n", 3, "second document"),
        ("model: *nothing\n", 1, "names no anchor"),
        ("model: &a [*a]\n", 1, "contains itself"),
        ("? [1, 2]\n: 3\n", 1, "key must be a word"),
        ("model: !!python/object:os.system {}\n", 1, "not understood"),
        ("model: !mine {}\n", 1, "not understood"),
        ("model: " + "[" * 500 + "]" * 500 + "\n", 1, "nested deeper"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, line: int | None, words: str
) -> None:
    path = write(tmp_path, content)
    problem = only_problem(path)
    assert words in problem.message
    if line is not None:
        assert problem.where == f"{path}:{line}"
    assert str(problem.where).startswith(str(path))


def test_a_truncated_scenario_never_passes_as_something_else(tmp_path: Path) -> None:
    text = SMALLEST + "slo: {ttft_ms: {p99: 500}}\n"
    complete = load_scenario(text)
    for cut in range(1, len(text) - 2):
        path = write(tmp_path, text[:cut], "case.yaml")
        with contextlib.suppress(InputError):
            assert load_scenario(path) != complete


def test_an_alias_bomb_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "aliases" in only_problem(write(tmp_path, "\n".join(lines))).message


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b"#" * (MAX_FILE_BYTES + 1))
    assert "longer than 5 MB" in only_problem(path).message


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "folder" in only_problem(tmp_path).message
    assert "no such file" in only_problem(tmp_path / "none.yaml").message


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load_scenario(path).model == MODEL


def test_duplicate_keys_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + f"model: {MODEL}\n")
    problem = only_problem(path)
    assert "lines 1 and 8" in problem.message
    assert problem.where == f"{path}:8"


@pytest.mark.parametrize("junk", [{"model": object()}, {"model": b"x"}, {"model": {"a": {1, 2}}}])
def test_a_dict_with_foreign_objects_is_refused(junk: dict[str, Any]) -> None:
    assert "cannot stand in a scenario" in only_problem(junk).message


# Refused: keys and values ---------------------------------------------------------------------------------

BLOCK = """\
model: m
seed: 0
deployment:
  engine: vllm
  hardware: h
  replicas: 2
workload:
  arrivals:
    kind: poisson
    rate: 12
  prompt_tokens: 100
  output_tokens: 10
  duration: 600
slo:
  ttft_ms:
    p99: 500
client:
  overhead_ms: 1
cost:
  pue: 1.2
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "mend"),
    [
        ("model: m", "modle: m", 1, "unknown key `modle` at the top", "`model`"),
        ("hardware: h", "hardwear: h", 5, "unknown key `hardwear` under `deployment`", "`hardware`"),
        ("replicas: 2", "routr: x\n  replicas: 2", 6, "unknown key `routr`", "`router`"),
        (
            "rate: 12",
            "rate: 12\n    flurry: 2",
            11,
            "unknown key `flurry` under `workload.arrivals`",
            "kind, rate",
        ),
        ("rate: 12", "rat: 12", 10, "unknown key `rat`", "`rate`"),
        ("duration", "duratoin", 13, "unknown key `duratoin` under `workload`", "`duration`"),
        ("p99: 500", "p98: 500", 16, "unknown key `p98` under `slo.ttft_ms`", "percentiles allowed: p50, p90, p95, p99"),
        ("  ttft_ms", "  tftt_ms", 15, "unknown key `tftt_ms` under `slo`", "`ttft_ms`"),
        ("  pue", "  pu", 20, "unknown key `pu` under `cost`", "`pue`"),
        ("kind: poisson", "kind: poison", 9, "is 'poison', which is not a choice", "'poisson'"),
        ("    kind: poisson\n", "", 8, "names no kind", "poisson"),
        ("replicas: 2", "replicas: 2.5", 6, "must be a whole number, not 2.5", "whole number"),
        ("replicas: 2", "replicas: '2'", 6, "must be a whole number, not '2'", "remove the quotes: 2"),
        ("replicas: 2", "replicas: true", 6, "must be a whole number, not true", "whole number"),
        ("replicas: 2", "replicas: -1", 6, "is -1; it must be at least 0", "at least 0"),
        ("replicas: 2", "replicas: 1e9", 6, "must be a whole number", "whole number"),
        ("replicas: 2", "replicas: 1000000000", 6, "at most 10000", "at most"),
        ("replicas: 2", "replicas: two", 6, "not 'two'", "whole number"),
        ("replicas: 2", "replicas:", 6, "not empty", "whole number"),
        ("replicas: 2", "expert_parallel: 0", 6, "at least 1", "at least 1"),
        ("replicas: 2", "expert_parallel: some", 6, "true or false or a whole number", "true or false"),
        ("replicas: 2", "kv_cache: 8", 6, "`deployment.kv_cache` must be text, not 8", "text"),
        ("replicas: 2", "role: mixd", 6, "is 'mixd', which is not a choice", "'mixed'"),
        ("replicas: 2", "router: cache-aware", 6, "not a choice", "write router: {system: sglang-router, policy: cache_aware}"),
        ("replicas: 2", "router: dynamo", 6, "which is not a choice", "write router: {system: dynamo}"),
        ("replicas: 2", "disaggregation: true", 6, "unknown key", "role: prefill"),
        ("replicas: 2", "batch_size: 8", 6, "unknown key", "concurrency: N"),
        ("replicas: 2", "max_context: 8192", 6, "unknown key", "a flag of the engine"),
        ("replicas: 2", "lora: true", 6, "must be a group of keys", "max_loras: 4"),
        ("duration: 600", "num_prompts: 600", 13, "unknown key `num_prompts`", "`requests`"),
        ("duration: 600", "dataset: sharegpt", 13, "unknown key `dataset`", "`trace`"),
        ("replicas: 2", "router: randm", 6, "is 'randm', which is not a choice", "random"),
        ("replicas: 2", "engine_args: [1]", 6, "no launch command of vllm", "only its flags"),
        ("replicas: 2", "pools: []", 4, "`engine` belongs to a pool", "into the entries"),
        ("engine: vllm", "engine: ''", 4, "is an empty text", "value"),
        ("p99: 500", "p99: 500ms", 16, "must be a number, not '500ms'", "write 500, in milliseconds"),
        ("p99: 500", "p99: 0.5s", 16, "must be a number, not '0.5s'", "write 500, in milliseconds"),
        ("p99: 500", "p99: 0", 16, "`slo.ttft_ms.p99` is 0", "above zero"),
        ("p99: 500", "p99: -1", 16, "`slo.ttft_ms.p99` is -1", "above zero"),
        ("overhead_ms: 1", "overhead_ms: 12ms", 18, "not '12ms'", "write 12, in milliseconds"),
        ("overhead_ms: 1", "overhead_ms: -1", 18, "is -1; it must be at least 0", "at least 0"),
        ("overhead_ms: 1", "overhead_ms: yes", 18, "must be a number, not 'yes'", "number"),
        ("duration: 600", "duration: 10min", 13, "not '10min'", "write 600, in seconds"),
        ("duration: 600", "duration: 0", 13, "`workload.duration` is 0", "above zero"),
        ("output_tokens: 10", "output_tokens: 2k", 12, "not '2k'", "write 2000"),
        (
            "prompt_tokens: 100",
            "prompt_tokens: {kind: lognormal, mean: 6000, sigma: 0.5}",
            11,
            "unknown key `sigma`",
            "write `p99: 16944` in place of `sigma`",
        ),
        ("prompt_tokens: 100", "prompt_tokens: {kind: lognormal, mean: 6000, cv: 0.5}", 11, "unknown key `cv`", "`p99: 16105`"),
        ("prompt_tokens: 100", "prompt_tokens: {kind: lognormal, mean: 6000}", 11, "p99` is missing", "add `p99: 36000`"),
        ("prompt_tokens: 100", "prompt_tokens: [1]", 11, "must be a group of keys, not a list", "group"),
        ("  duration: 600", "  image: 3\n  duration: 600", 13, "unknown key `image` under `workload`", "did you mean `images`?"),
        ("  duration: 600", "  images: 1000\n  duration: 600", 13, "a group of keys or recorded, not 1000", "{tokens: 1000}"),
        ("rate: 12", "rate: 0", 10, "a rate of zero", "above zero"),
        ("rate: 12", "rate: -2", 10, "negative", "above zero"),
        ("rate: 12", "rate: .nan", 10, "NaN", "finite"),
        ("rate: 12", "rate: .inf", 10, "infinity", "finite"),
        ("rate: 12", "rate: 12/s", 10, "not '12/s'", "without '/s'"),
        ("seed: 0", "seed: -1", 2, "at least 0", "at least 0"),
        ("seed: 0", "seed: .nan", 2, "NaN", "finite"),
        ("pue: 1.2", "pue: 0.9", 20, "at least 1", "at least 1"),
        ("pue: 1.2", "commitment: yearly", 20, "is 'yearly', which is not a choice", "reserved_1y"),
        ("pue: 1.2", "spot: true\n  commitment: on_demand", 20, "contradicts commitment", "keep one"),
        (
            "  duration: 600",
            "  trace: azure-conv-2023\n  duration: 600",
            13,
            "trace belongs to a trace",
            "not both",
        ),
        ("  duration: 600", "  classes: []\n  duration: 600", 13, "`workload.classes` is empty", "entries"),
        ("  duration: 600\n", "", 8, "nothing ends the arrivals", "duration"),
        ("  duration: 600", "  duration: 600\n  warmup: 700", 14, "warmup", "shorter warmup"),
        ("  duration: 600", "  max_output_tokens: equl\n  duration: 600", 13, "not 'equl'", "'equal'"),
        (
            "replicas: 2",
            "admission: {max_inflight: 2, max_queue: 5}",
            6,
            "nobody waits: max_queue and queue_timeout_s need on_full: wait",
            "",
        ),
        ("replicas: 2", "transfer: {bytes_per_s: 0}", 6, "must be greater than 0", "greater than 0"),
        ("replicas: 2", "autoscaler: {kind: hpaa}", 6, "hpaa", "hpa"),
        ("replicas: 2", "autoscaler: {kind: hpa, target: 5, min_replica: 2}", 6, "unknown key `min_replica`", "`min_replicas`"),
        ("replicas: 2", "lora: {loras: 5}", 6, "unknown key `loras` under `deployment.lora`", "max_loras"),
        ("replicas: 2", "kv_tiers: [{kind: nvme}]", 6, "`deployment.kv_tiers.0.bytes` is missing", ""),
        ("replicas: 2", "kv_tiers: [{kind: tape, bytes: 1}]", 6, "tape", "nvme"),
        ("replicas: 2", "role: encode", 6, "without a pool that answers", "role: mixed"),
        ("replicas: 2", "offload: {gib: 5}", 6, "unknown key `gib` under `deployment.offload`", "kv_offloading_size"),
        ("replicas: 2", "speculative: {k: 5}", 6, "unknown key `k` under `deployment.speculative`", "valid keys"),
        ("replicas: 2", "speculative: {tokens: 5}", 6, "unknown key `tokens`", "speculative.num_speculative_tokens` or"),
        ("replicas: 2", "role: prefill", 6, "without a decode pool", "role: decode"),
        (
            "replicas: 2",
            "engine_args: {max_num_sequences: 5}",
            6,
            "no flag `max_num_sequences`",
            "`max_num_seqs`",
        ),
        ("replicas: 2", "engine_args: --max-nun-seqs 5", 6, "no flag `--max-nun-seqs`", "`--max-num-seqs`"),
        ("replicas: 2", "engine_args: {max_num_seqs: many}", 6, "must be a whole number", "value"),
        (
            "replicas: 2",
            "tensor_parallel: 2\n  engine_args: -tp 4",
            7,
            "contradicts the pool's key `ten",
            "one of",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line_and_mend(
    tmp_path: Path, old: str, new: str, line: int, message: str, mend: str
) -> None:
    assert BLOCK.count(old) >= 1
    path = write(tmp_path, BLOCK.replace(old, new, 1))
    first = problems_of(path)[0]
    assert message in first.message
    assert mend in str(first.mend)
    assert first.where == f"{path}:{line}"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{tokens: 0}", "`workload.images.tokens` is 0"),
        ("{tokens: 9, size: 2}", "unknown key `size` under `workload.images`"),
        ("{count: 2}", "`workload.images.tokens` is missing"),
        ("recordet", "`workload.images` must be a group of keys or recorded, not 'recordet'"),
    ],
)
def test_a_key_that_takes_a_group_or_a_word_is_judged_as_what_was_written(images: str, message: str) -> None:
    assert only_problem(BLOCK.replace("  duration: 600", f"  images: {images}\n  duration: 600")).message == message


@pytest.mark.parametrize("key", ["model", "deployment", "workload"])
def test_a_missing_section_is_named(key: str) -> None:
    data = load_scenario(SMALLEST).model_dump()
    del data[key]
    assert f"`{key}` is missing" in only_problem(data).message


@pytest.mark.parametrize("key", ["engine", "hardware"])
def test_a_missing_key_of_an_inline_pool_is_named_as_the_user_would_write_it(key: str) -> None:
    problem = only_problem(BLOCK.replace(f"  {key}: ", f"  # {key}: "))
    assert problem.message == f"`deployment.{key}` is missing"


def test_all_problems_are_collected_and_the_first_line_leads(tmp_path: Path) -> None:
    text = (
        BLOCK.replace("seed: 0", "sead: 0")
        .replace("replicas: 2", "replicas: x")
        .replace("p99: 500", "p99: 1s")
    )
    path = write(tmp_path, text.replace("pue: 1.2", "pue: .nan"))
    found = problems_of(path)
    assert [p.where for p in found] == [f"{path}:{line}" for line in (2, 6, 16, 20)]
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert caught.value.message == found[0].message
    assert str(caught.value).count("mend:") == 4


def test_a_store_around_several_pools_may_be_set() -> None:
    pools = "deployment: {pools: [{name: a, engine: vllm, hardware: h}, {name: b, engine: vllm, hardware: h}]}"
    text = f"model: m\n{pools}\nworkload: {{trace: azure-conv-2023}}\n"
    deployment = load_scenario(text, overrides=["deployment.kv_tiers=[{kind: shared, bytes: 1.0e+12}]"]).deployment
    assert [tier.kind for tier in deployment.kv_tiers or ()] == ["shared"]
    assert [pool.kv_tiers for pool in deployment.pools] == [None, None]


def test_two_pools_of_one_name_are_refused() -> None:
    pools = (
        "deployment: {pools: [{name: a, engine: vllm, hardware: h}, {name: a, engine: vllm, hardware: h}]}\n"
    )
    text = "model: m\n" + pools + "workload: {trace: azure-conv-2023}\n"
    assert "two pools are named 'a'" in only_problem(text).message


def test_prefill_and_decode_pools_and_their_transfer_are_read() -> None:
    text = """\
model: m
deployment:
  pools:
    - {name: p, role: prefill, engine: vllm, hardware: h}
    - {name: d, role: decode, engine: vllm, hardware: h, replicas: 0, colocate: p}
  transfer: [{from: p, to: d, bytes_per_s: 1.0e+9}, {latency_s: 0.001}]
workload: {trace: azure-conv-2023}
"""
    scenario = load_scenario(text)
    assert [pool.role for pool in scenario.deployment.pools] == ["prefill", "decode"]
    assert load_scenario(resolved(scenario)) == scenario
    ways = resolved(scenario)["deployment"]["transfer"]
    assert [(way["from"], way["to"], way["bytes_per_s"]) for way in ways] == [("p", "d", 1e9), (None, None, None)]


# Overrides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["deployment.replicas", "deployment.pools.0.replicas"])
def test_set_reaches_a_pool_inline_or_listed(path: str) -> None:
    inline = load_scenario(SMALLEST, [f"{path}=4"])
    listed = load_scenario(resolved(load_scenario(SMALLEST)), [f"{path}=4"])
    assert inline == listed
    assert inline.deployment.pools[0].replicas == 4


def test_set_values_are_yaml_and_the_last_one_wins() -> None:
    scenario = load_scenario(
        SMALLEST,
        [
            "workload.arrivals={kind: gamma, rate: 3, cv: 2}",
            "slo.ttft_ms.p99=1e3",
            "deployment.engine_args.max_num_seqs=64",
            "deployment.weights=fp8",
            "seed=1",
            "seed=2",
            "name=a=b",
        ],
    )
    assert resolved(scenario)["workload"]["arrivals"] == {"kind": "gamma", "rate": 3.0, "cv": 2.0}
    assert scenario.slo.bounds_ms() == {"ttft_ms": {"p99": 1000.0}}
    assert scenario.deployment.pools[0].engine_args == {"max_num_seqs": 64}
    assert (scenario.seed, scenario.name) == (2, "a=b")


def test_set_changes_one_use_of_an_anchor_only() -> None:
    text = """\
model: m
deployment: {pools: [&p {name: a, engine: vllm, hardware: h}, {<<: *p, name: b}]}
workload: {trace: azure-conv-2023}
"""
    pools = load_scenario(text, ["deployment.pools.0.hardware=x"]).deployment.pools
    assert [pool.hardware for pool in pools] == ["x", "h"]


@pytest.mark.parametrize(
    ("override", "message", "mend"),
    [
        ("seed", "not of the form path=value", "--set"),
        ("=3", "not of the form path=value", "--set"),
        ("a..b=3", "not of the form path=value", "--set"),
        ("deployment.replica=4", "unknown key `replica` under `deployment`", "`deployment.replicas`"),
        ("deploymnt.replicas=4", "unknown key `deploymnt` at the top", "`deployment`"),
        ("workload.arrivals.rat=4", "unknown key `rat`", "`workload.arrivals.rate`"),
        ("slo.ttft.p99=4", "unknown key `ttft` under `slo`", "`slo.ttft_ms`"),
        ("deployment.pools.1.replicas=4", "there is no pool 1", "index 0"),
        ("deployment.pools.x.replicas=4", "there is no pool x", "index 0"),
        ("model.layers=4", "which has no key `layers`", "as a whole"),
        ("workload.arrivals.rate=fast", "must be a number, not 'fast'", "number"),
        ("workload.arrivals.rate=.nan", "NaN", "finite"),
        ("workload.arrivals.rate=[1", "bracket", "close"),
        ("workload.arrivals.rate={a: 1, a: 2}", "stands twice", "keep one"),
        ("deployment.replicas=", "not empty", "whole number"),
    ],
)
def test_a_wrong_set_is_named_by_its_path(override: str, message: str, mend: str) -> None:
    first = problems_of(SMALLEST, (override,))[0]
    assert message in first.message
    assert mend in str(first.mend)
    assert str(first.where).startswith("--set")


def test_set_of_a_pool_key_with_several_pools_asks_for_the_index() -> None:
    text = "model: m\ndeployment: {pools: [{engine: vllm, hardware: h}, {engine: vllm, hardware: g}]}\n"
    text += "workload: {trace: azure-conv-2023}\n"
    assert "has 2 pools" in only_problem(text, ("deployment.replicas=3",)).message
    assert "list of 2" in only_problem(text, ("deployment.pools.2.replicas=3",)).message
    assert load_scenario(text, ["deployment.pools.1.replicas=3"]).deployment.pools[1].replicas == 3


# Schema ---------------------------------------------------------------------------------------------------


def test_the_json_schema_knows_both_forms_of_a_deployment() -> None:
    schema = json_schema()
    assert set(schema["required"]) == {"model", "deployment", "workload"}
    assert schema["additionalProperties"] is False
    listed, inline = schema["$defs"]["Deployment"]["anyOf"]
    assert {"pools", "router"} <= set(listed["properties"])
    assert {"engine", "hardware", "replicas", "router"} <= set(inline["properties"])
    assert "pools" not in inline["properties"]
    assert sorted(inline["required"]) == ["engine", "hardware"]
    json.dumps(schema, allow_nan=False)


def test_a_file_of_flags_beside_the_scenario_is_read(tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("max-num-seqs: 9\ntensor-parallel-size: 2\n")
    for args in ("vllm serve /models/m --config flags.yaml --max-num-seqs 7", "--config=flags.yaml --max-num-seqs 7"):
        path = write(tmp_path, BLOCK.replace("replicas: 2", f"engine_args: {args}", 1))
        pool = load_scenario(path).deployment.pools[0]
        assert pool.tensor_parallel == 2
        assert parse_engine_args("vllm", pool.engine_args).values == {"max_num_seqs": 7, "tensor_parallel_size": 2}
    (tmp_path / "options.yaml").write_text("max_batch_size: 9\n")
    for args in ("--extra_llm_api_options options.yaml", "--config=options.yaml"):
        other = BLOCK.replace("vllm", "trtllm", 1).replace("replicas: 2", f"engine_args: {args}", 1)
        found = parse_engine_args("trtllm", load_scenario(write(tmp_path, other)).deployment.pools[0].engine_args)
        assert found.values == {"max_batch_size": 9}
    packed = "vllm serve ./Llama-3.1-8B-Instruct-Q4_K_M.gguf"  # the file's name says its format, whoever serves it
    text = BLOCK.replace("replicas: 2", f"engine_args: {packed}", 1)
    assert load_scenario(write(tmp_path, text)).deployment.pools[0].weights == "q4_k_m"
    lacking = write(tmp_path, BLOCK.replace("replicas: 2", "engine_args: --config none.yaml", 1))
    with pytest.raises(InputError, match="flags in that file cannot be seen"):
        load_scenario(lacking)


def test_a_shipped_scenario_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = sorted(shipped_scenarios())[0]
    (tmp_path / name).mkdir()
    assert load_scenario(name).name
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="folder"):
        load_scenario("other")
