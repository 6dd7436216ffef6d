"""`calibrate results`: known scales come back from files of a simulated server; what cannot be is refused by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hardware_profiles.calibration import read_calibration
from hardware_profiles.errors import InputError
from hardware_profiles.law_constants import METAL
from hardware_profiles.scaled_ops import Scales
from simulator.calibrated import with_scales
from simulator.calibration.deployment import Deployment
from simulator.calibration.fit import FOLLOWED, FOLLOWED_ON_CPUS, Followed, Known, Point, best_groups, fit
from simulator.calibration.results import calibrate_results, calibrate_whole_steps
from simulator.calibration.served import points_of_results
from simulator.cli.app import whole_app
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.results.domain import domain
from simulator.results.latencies import latencies
from simulator.run import run_prepared

SCENARIO: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "deployment": {
        "engine": "vllm",
        "hardware": "h100-sxm-80gb",
        "engine_args": {"max_model_len": 4096, "max_num_batched_tokens": 4096, "max_num_seqs": 16},
    },
    "workload": {
        "arrivals": {"kind": "closed_loop", "concurrency": 1},
        "prompt_tokens": 1024,
        "output_tokens": 16,
        "max_output_tokens": "equal",
        "requests": 12,
    },
}
TRUE = Scales(prompt_scale=1.3, decode_scale=0.85)


def bench(path: Path, clients: int, prompt: int, scales: Scales = TRUE, **changed: Any) -> Path:
    """What `vllm bench serve` would save of a server with these scales."""
    load = [f"workload.arrivals.concurrency={clients}", f"workload.prompt_tokens={prompt}"]
    run = run_prepared(with_scales(prepare(load_scenario(SCENARIO, load)), scales))
    found, raw = latencies(run.raw), run.raw
    document = {
        "model_id": "Qwen/Qwen3-8B",
        "request_rate": "inf",
        "max_concurrency": clients,
        "completed": 12,
        "failed": 0,
        "duration": float(raw.end_s.max()),
        "total_input_tokens": int(raw.prompt_tokens.sum()),
        "total_output_tokens": int(raw.output_tokens.sum()),
        "input_lens": raw.prompt_tokens.tolist(),
        "output_lens": raw.output_tokens.tolist(),
        "request_throughput": 1.0,
        "mean_ttft_ms": float(found.ttft_ms.mean()),
        "mean_tpot_ms": float(found.tpot_ms.mean()),
    }
    path.write_text(json.dumps({**document, **changed}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario, and results of two loads."""
    made = tmp_path_factory.mktemp("measured")
    (made / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    for clients, prompt in ((1, 1024), (4, 2048)):
        bench(made / f"c{clients}.json", clients, prompt)
    return made


def test_known_scales_come_back_and_serve_a_scenario(folder: Path, tmp_path: Path) -> None:
    files = [str(folder / f"c{clients}.json") for clients in (1, 4)]
    out = tmp_path / "mine.json"
    asked = ["calibrate", "results", *files, "--scenario", str(folder / "s.yaml"), "--out", str(out)]
    done = CliRunner().invoke(whole_app(), asked)
    assert done.exit_code == 0, done.output
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("written")) <= 80
    found = read_calibration(out)
    assert found.scales["prompt"] == pytest.approx(1.3, rel=0.03)
    assert found.scales["decode"] == pytest.approx(0.85, rel=0.02)
    assert list(found.unidentified) == ["host"]
    assert found.points == 2
    assert found.held_out_error is not None
    assert found.held_out_error < 0.04
    assert max(abs(row["after_error"]) for row in found.table) < 0.03 < max(abs(row["before_error"]) for row in found.table)
    assert found.domain == {"prompt_tokens": (1024, 2048), "context_tokens": (1040, 2064), "rows": (1, 4)}
    assert [file["name"] for file in found.provenance["files"]] == ["c1.json", "c4.json"]
    run = run_prepared(prepare(load_scenario(SCENARIO, [f"deployment.calibration={out}"])))
    truth = json.loads((folder / "c1.json").read_text())
    assert run.result["metrics"]["tpot_ms"]["mean"] == pytest.approx(truth["mean_tpot_ms"], rel=0.02)
    assert run.result["extrapolation"]["inside_calibration"]
    again = CliRunner().invoke(whole_app(), asked)
    assert isinstance(again.exception, InputError)
    assert read_calibration(out) == found


def as_client(kind: str, folder: Path) -> Path:
    """What a client would save of each request of four users of a server with the scales above."""
    run = run_prepared(with_scales(prepare(load_scenario(SCENARIO, ["workload.arrivals.concurrency=4"])), TRUE))
    raw, found = run.raw, latencies(run.raw)
    sent = list(zip(raw.arrival_s, raw.end_s, found.ttft_ms, found.tpot_ms, raw.prompt_tokens, raw.output_tokens, strict=True))
    if kind == "aiperf":
        lines = []
        for start, end, ttft, tpot, prompt, output in sent:
            values = {"time_to_first_token": (ttft, "ms"), "inter_token_latency": (tpot, "ms")}
            values |= {"input_sequence_length": (int(prompt), "tokens"), "output_sequence_length": (int(output), "tokens")}
            metrics = {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}
            times = {"request_start_ns": 10**18 + round(start * 1e9), "request_end_ns": 10**18 + round(end * 1e9)}
            lines.append(json.dumps({"metadata": times, "metrics": metrics}))
        path, text = folder / "profile_export.jsonl", "\n".join(lines)
    elif kind == "inference-perf":
        records = [
            {
                "start_time": 50 + start,
                "end_time": 50 + end,
                "request": "",
                "info": {
                    "input_tokens": int(prompt),
                    "output_tokens": int(output),
                    "output_token_times": np.linspace(50 + start + ttft / 1e3, 50 + end, int(output)).tolist(),
                },
            }
            for start, end, ttft, _, prompt, output in sent
        ]
        path, text = folder / "per_request_lifecycle_metrics.json", json.dumps(records)
    else:
        blocks = {"time_to_first_token_ms": found.ttft_ms, "inter_token_latency_ms": found.tpot_ms}
        benchmark = {
            "config": {"strategy": {"type_": "concurrent", "streams": 4}},
            "metrics": {
                **{name: {"successful": {"mean": float(v.mean()), "count": len(v)}} for name, v in blocks.items()},
                "request_totals": {"successful": 12, "errored": 0},
            },
            "requests": {
                "successful": [
                    {"request_start_time": start, "prompt_tokens": int(prompt), "output_tokens": int(output)}
                    for start, _, _, _, prompt, output in sent
                ]
            },
        }
        path, text = folder / "benchmarks.json", json.dumps({"benchmarks": [benchmark, benchmark]})
    path.write_text(text)
    return path


@pytest.mark.parametrize(("kind", "points"), [("aiperf", 1), ("inference-perf", 1), ("guidellm", 2)])
def test_requests_of_each_client_are_the_load(folder: Path, tmp_path: Path, kind: str, points: int) -> None:
    found, left, _ = points_of_results(as_client(kind, tmp_path), Deployment(folder / "s.yaml", ("workload.prompt_tokens=64",)))
    assert (len(found), left) == (points, [])
    predicted = found[0].predict(TRUE)
    assert found[0].measured.keys() == {"ttft_mean_ms", "tpot_mean_ms"}
    for metric, value in found[0].measured.items():
        assert predicted[metric] == pytest.approx(value, rel=0.02)
    assert found[0].ranges["rows"] == 4
    assert found[0].ranges["prompt_tokens"] == 1024


def test_a_list_of_cases_brings_scenarios_of_its_own(folder: Path, tmp_path: Path) -> None:
    case = {"id": "one", "scenario": yaml.safe_dump(SCENARIO), "reported": {"tpot_mean_ms": 6.5}}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case))
    outcome = calibrate_results([tmp_path / "cases.jsonl"], Deployment(folder / "s.yaml"))
    assert outcome.fit.groups == (("decode",),)
    with pytest.raises(InputError, match="one was measured on h100-sxm-80gb, and the scenario has a100"):
        calibrate_results(
            [tmp_path / "cases.jsonl"], Deployment(folder / "s.yaml", ("deployment.hardware=a100-sxm-80gb",))
        )


def test_one_measurement_gives_scales_and_says_what_it_does_not_tell(folder: Path) -> None:
    outcome = calibrate_results([folder / "c1.json"], Deployment(folder / "s.yaml"))
    found = outcome.calibration
    assert found.held_out_error is None
    assert found.scales["decode"] == pytest.approx(0.85, rel=0.03)
    assert found.log_std["decode"] > 0.03
    assert "of any time measured" in found.unidentified["host"]
    assert 0.1 < found.interval["tpot"] < found.interval["ttft"] < 0.4


def test_scales_that_the_data_cannot_tell_apart_move_together() -> None:
    known = Known.of_error(0.2)
    apart = np.array([[0.9, 0.05, 0.0], [0.0, 0.95, 0.02]])
    assert best_groups(apart, known.sigma(apart, np.zeros(2)), known) == (("prompt",), ("decode",))
    mixed = np.array([[0.4, 0.55, 0.0]])
    assert best_groups(mixed, known.sigma(mixed, np.zeros(1)), known) == (("prompt", "decode"),)
    host = np.array([[0.0, 0.02, 0.95]])
    assert best_groups(host, known.sigma(host, np.zeros(1)), known) == (("host",),)


def measured_once(error: float, sensitivity: tuple[float, ...] = (0.0, 1.0, 0.0), rows: float = 1.0) -> Point:
    """A point whose time is predicted `error` too long, in its logarithm."""

    def predict(scales: Scales) -> dict[str, float]:
        logs = np.log([scales.prompt_scale, scales.decode_scale, scales.host_scale])
        return {"time": float(np.exp(error + logs @ np.array(sensitivity)))}

    return Point("", {"time": 1.0}, predict, {}, {"rows": rows})


@pytest.mark.parametrize(("followed", "prompt"), [(FOLLOWED, 0.6), (FOLLOWED_ON_CPUS, 0.9)])
def test_one_measurement_is_followed_in_part_and_never_far_several_that_agree_by_all(followed: Followed, prompt: float) -> None:
    known = Known.of_error(0.2, followed)
    one, other = (fit([measured_once(0.3, felt)], known).log_scales for felt in ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
    assert one == {"decode": pytest.approx(-0.9 * 0.3)}
    assert other == {"prompt": pytest.approx(-prompt * 0.3)}
    assert fit([measured_once(0.3, (0.0, 0.8, 0.0))], known).log_scales["decode"] == pytest.approx(-0.9 * 0.3 / 0.8)
    batch = fit([measured_once(0.3, rows=8.0)], known).log_scales
    assert batch == {"decode": pytest.approx(-followed.batch_share * 0.3)}
    assert fit([measured_once(1.0)], known).log_scales["decode"] == pytest.approx(-2 * 0.2)
    assert fit([measured_once(1.0)] * 2, known).log_scales["decode"] == pytest.approx(-2 * 0.2), "the same point twice"
    agreeing = fit([measured_once(1.0), measured_once(1.0)], known)
    assert agreeing.log_scales["decode"] == pytest.approx(-1.0, abs=0.02)
    apart = fit([measured_once(0.3), measured_once(0.3, (1.0, 0.0, 0.0))], known).log_scales
    assert apart == {"decode": pytest.approx(-0.9 * 0.3), "prompt": pytest.approx(-prompt * 0.3)}
    assert fit([measured_once(1.0)], known, believed=True).log_scales["decode"] < -0.9


def test_one_measurement_moves_what_leads_it() -> None:
    known = Known.of_error(0.2)
    assert set(fit([measured_once(0.2, (0.7, 0.3, 0.0))], known).log_scales) == {"prompt"}
    assert set(fit([measured_once(0.2, (0.5, 0.5, 0.0))], known).log_scales) == {"prompt", "decode"}
    assert set(fit([measured_once(0.2, (0.7, 0.3, 0.0), rows=8)], known).log_scales) == {"prompt", "decode"}
    assert set(fit([measured_once(0.2, (0.34, 0.33, 0.33))], known).log_scales) == {"prompt"}
    assert set(fit([measured_once(0.2, (0.7, 0.3, 0.0))], known, believed=True).log_scales) == {"prompt", "decode"}


def test_a_measurement_far_from_the_profile_is_refused_or_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    far = bench(tmp_path / "far.json", 1, 1024, Scales(decode_scale=5.0))
    with pytest.raises(InputError, match="the scenario does not describe the server"):
        calibrate_results([far], Deployment(folder / "s.yaml"))
    taken = calibrate_results([far], Deployment(folder / "s.yaml"), any_scale=True)
    assert taken.calibration.scales["decode"] == pytest.approx(5.0, rel=0.05)


def test_several_models_of_a_machine_are_named_and_carry_further(folder: Path, tmp_path: Path) -> None:
    cases = [
        {"id": model, "scenario": yaml.safe_dump({**SCENARIO, "model": model}), "reported": {"tpot_mean_ms": tpot}}
        for model, tpot in (("Qwen/Qwen3-8B", 6.5), ("meta-llama/Llama-3.1-8B-Instruct", 6.4))
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    both = calibrate_results([tmp_path / "cases.jsonl"], Deployment(folder / "s.yaml")).calibration
    (tmp_path / "cases.jsonl").write_text(json.dumps(cases[1]))
    one = calibrate_results([tmp_path / "cases.jsonl"], Deployment(folder / "s.yaml")).calibration
    names = (prepare(load_scenario(case["scenario"])).arch.name for case in cases)
    assert all(map(both.of_model, names))
    assert not one.of_model(SCENARIO["model"]), "the case brings a model of its own"
    assert (one.elsewhere_share, both.elsewhere_share) == (pytest.approx(0.3), pytest.approx(2 * 0.3 / 1.3))


def test_scales_far_from_the_profile_are_told_apart_on_the_way(folder: Path, tmp_path: Path) -> None:
    far = Scales(prompt_scale=30.0, decode_scale=8.0)
    paths = [bench(tmp_path / f"{clients}.json", clients, 1024, far) for clients in (1, 4)]
    outcome = calibrate_results(paths, Deployment(folder / "s.yaml"), any_scale=True)
    assert outcome.calibration.scales["prompt"] == pytest.approx(30, rel=0.05)
    assert outcome.calibration.scales["decode"] == pytest.approx(8, rel=0.05)


REFUSED: list[tuple[dict[str, Any], list[str], str]] = [
    ({"model_id": "meta-llama/Llama-3.1-70B"}, [], r"measured with meta-llama/Llama-3\.1-70B, and the scenario's model is Qwen"),
    ({"tensor_parallel_size": 2}, [], "tensor parallelism 2, and the scenario has 1"),
    ({"mean_tpot_ms": 5.5e-3}, [], "a thousand times less than predicted .* units are mixed"),
    ({"mean_tpot_ms": 2.0}, [], "cannot do it in less than .* above the roofline"),
    ({"mean_tpot_ms": 40.0}, [], "the scenario does not describe the server"),
    ({"mean_ttft_ms": 4.0}, [], "ttft_mean_ms is 4, .* above the roofline"),
    ({"mean_ttft_ms": -3.0}, [], "its mean ttft_ms is -3, and no time is below zero"),
    ({"mean_tpot_ms": 1e29}, [], "it is no time of this deployment"),
    ({"completed": 3}, [], "too few points: none is left .*3 requests are too few"),
    ({"failed": 9}, [], "9 requests failed, of 21"),
    ({"input_lens": None, "output_lens": None}, ["workload.prompt_tokens=300"], "prompts of 1,024 tokens were measured"),
    ({}, ["deployment.hardware=l40s"], "above the roofline"),
]


@pytest.mark.parametrize(("changed", "overrides", "words"), REFUSED)
def test_what_cannot_be_is_refused(
    folder: Path, tmp_path: Path, changed: dict[str, Any], overrides: list[str], words: str
) -> None:
    document = json.loads((folder / "c1.json").read_text())
    path = tmp_path / "r.json"
    path.write_text(json.dumps({key: value for key, value in {**document, **changed}.items() if value is not None}))
    with pytest.raises(InputError, match=words):
        calibrate_results([path], Deployment(folder / "s.yaml", tuple(overrides)))


def test_a_server_of_fewer_devices_than_the_scenario_is_found_out(folder: Path, tmp_path: Path) -> None:
    path = bench(tmp_path / "one.json", 1, 1024, Scales(), mean_ttft_ms=None)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if value is not None}))
    with pytest.raises(InputError, match=r"at tensor parallelism 2, .* 0% at 1: the scenario does not describe the server"):
        calibrate_results([path], Deployment(folder / "s.yaml", ("deployment.tensor_parallel=2",)))


def test_a_mean_that_is_no_number_is_named_and_the_others_are_taken(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "c1.json").read_text())
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**document, "mean_ttft_ms": math.nan}))
    outcome = calibrate_results([path], Deployment(folder / "s.yaml"))
    assert [one.reason for one in outcome.left] == ["mean_ttft_ms: NaN is no measurement, and is not taken"]
    assert {row["metric"] for row in outcome.calibration.table} == {"tpot_mean_ms"}
    for value in (math.nan, math.inf):
        case = {"id": "a", "source": "-", "scenario": (folder / "s.yaml").read_text(), "reported": {"tpot_mean_ms": value}}
        path.write_text(json.dumps(case) + "\n")
        with pytest.raises(InputError, match=f"tpot_mean_ms is {value}, .* it is no time of this deployment"):
            calibrate_results([path], Deployment(folder / "s.yaml"))


def test_rows_before_a_cut_line_are_kept_and_the_cut_is_said(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "c1.json").read_text()
    (tmp_path / "r.jsonl").write_text(f"{whole}\n{whole[:300]}")
    outcome = calibrate_results([tmp_path / "r.jsonl"], Deployment(folder / "s.yaml"))
    assert outcome.calibration.points == 1
    assert [(one.label, "cut short" in one.reason) for one in outcome.left] == [("r.jsonl", True)]


def llama_bench(path: Path, rows: list[tuple[int, int, float]], **changed: Any) -> Path:
    """Rows of llama-bench: prompt, answer, milliseconds of all of it."""
    common = {"model_n_params": 8_030_261_248, "model_size": 4_920_000_000, "model_type": "llama 8B", "n_ubatch": 512}
    lines = [
        json.dumps({**common, "n_prompt": p, "n_gen": g, "n_depth": 0, "avg_ns": round(ms * 1e6), "stddev_ns": 0, **changed})
        for p, g, ms in rows
    ]
    path.write_text("\n".join(lines))
    return path


def test_llama_bench_calibrates_a_mac_and_names_another_model(tmp_path: Path) -> None:
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "deployment": {"engine": "llama_cpp", "hardware": "apple-m2-ultra-76c-192gb", "weights": "q4_k_m"},
        "workload": {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 512, "output_tokens": 16},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    deployment = Deployment(tmp_path / "s.yaml")
    path = llama_bench(tmp_path / "b.jsonl", [(512, 0, 500.0), (0, 128, 1500.0)])
    outcome = calibrate_results([path], deployment)
    assert outcome.fit.groups == (("prompt",), ("decode",))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    (tmp_path / "b.csv").write_text("build: 4500\n" + "\n".join(",".join(line) for line in lines))
    as_csv = calibrate_results([tmp_path / "b.csv"], deployment).calibration
    assert (as_csv.scales, as_csv.table) == (outcome.calibration.scales, outcome.calibration.table)
    (tmp_path / "b.sql").write_text("INSERT INTO llama_bench (n_prompt) VALUES ('512');")
    with pytest.raises(InputError, match="no rows of llama-bench"):
        calibrate_results([tmp_path / "b.sql"], deployment)
    before, after = (
        np.array([row[name] for row in outcome.calibration.table]) for name in ("before_error", "after_error")
    )
    assert np.all(np.abs(after) < np.abs(before))
    assert np.all(np.abs(after) < 0.05)
    assert "makes up at most 0%" in outcome.calibration.unidentified["host"]
    with pytest.raises(InputError, match=r"a model of 3\.21 B parameters .* has 8\.03 B"):
        calibrate_results([llama_bench(tmp_path / "o.jsonl", [(512, 0, 500.0)], model_n_params=3_212_749_888)], deployment)
    with pytest.raises(InputError, match=r"8\.1 bits a weight, and the scenario's weights are q4_k_m"):
        calibrate_results([llama_bench(tmp_path / "o.jsonl", [(512, 0, 500.0)], model_size=8_100_000_000)], deployment)
    for told in ({"backends": "CUDA"}, {"backends": "MTL,BLAS", "n_gpu_layers": 0}, {"backends": "CPU"}):
        with pytest.raises(InputError, match=r"backend .* and the scenario's device is Apple M2 Ultra"):
            calibrate_results([llama_bench(tmp_path / "o.jsonl", [(512, 0, 500.0)], **told)], deployment)
    on_metal = llama_bench(tmp_path / "o.jsonl", [(512, 0, 500.0)], backends="MTL,BLAS", n_gpu_layers=99)
    assert calibrate_results([on_metal], deployment).fit.groups == (("prompt",),)
    (tmp_path / "o.json").write_text("[1, 2]")
    with pytest.raises(InputError) as unknown:
        calibrate_results([tmp_path / "o.json"], deployment)
    assert "llama-batched-bench" in str(unknown.value.mend)
    for rows, words in (([(512, 0, -1.0)], "took -0.001 seconds"), ([(10**12, 0, 5.0)], "1000000000000 prompt tokens")):
        with pytest.raises(InputError, match=words):
            calibrate_results([llama_bench(tmp_path / "o.jsonl", rows)], deployment)
    assert math.isclose(outcome.calibration.domain["prompt_tokens"][1], 512)
    outcome.calibration.write(tmp_path / "mine.json")
    measured = prepare(load_scenario(scenario, [f"deployment.calibration={tmp_path}/mine.json"]))
    evidence, _ = domain(measured, {"rows": 1, "prompt_tokens": 512, "context_tokens": 528})
    assert dict(evidence.fitted)["ttft"] <= METAL.within.prompt_width  # a Mac that was measured is no less known than another


def test_many_rows_of_llama_bench_are_a_law_of_whole_steps(tmp_path: Path) -> None:
    def took_ms(prompt: int, answer: int, depth: int) -> float:
        if answer:
            return answer * (15.0 + 1e-3 * (depth + answer / 2))
        return 20.0 + 1.5 * prompt + 1e-4 * prompt * (depth + prompt / 2)

    tests = [(p, 0, d) for p in (16, 64, 128, 256, 512) for d in (0, 512)]
    tests += [(0, 16, d) for d in (0, 256, 512, 1024)]
    lines = [
        json.dumps({"n_prompt": p, "n_gen": g, "n_depth": d, "avg_ns": round(1e6 * took_ms(p, g, d))}) for p, g, d in tests
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "deployment": {"engine": "llama_cpp", "hardware": "apple-m2-ultra-76c-192gb", "weights": "q4_k_m"},
        "workload": {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 512, "output_tokens": 16},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    deployment = Deployment(tmp_path / "s.yaml")
    assert any("--whole-steps" in note for note in calibrate_results([tmp_path / "b.jsonl"], deployment).notes)
    outcome = calibrate_whole_steps([tmp_path / "b.jsonl"], deployment)
    assert outcome.calibration.held_out_error is not None
    assert outcome.calibration.held_out_error < 0.02
    outcome.calibration.write(tmp_path / "law.json")
    prepared = prepare(load_scenario(scenario, [f"deployment.calibration={tmp_path / 'law.json'}"]))
    run = run_prepared(prepared)
    rows_ms = 1e3 * prepared.plan.costs.terms.host.row_s  # of the server, which llama-bench has not
    assert run.result["metrics"]["tpot_ms"]["mean"] == pytest.approx(15.5 + rows_ms, rel=0.02)
    assert rows_ms > 0
    (tmp_path / "c.json").write_text('{"completed": 9, "mean_ttft_ms": 9, "duration": 1, "request_throughput": 9}')
    with pytest.raises(InputError, match="timed by llama-bench and llama-batched-bench alone"):
        calibrate_whole_steps([tmp_path / "c.json"], deployment)
