"""A list of published measurements: each case simulated and compared, what cannot be is skipped with the reason."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.corrected import CORRECTIONS, corrected
from engine_models.cost.overheads import own_overheads
from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.validation.one_factor import one_factors, without
from simulator.validation.report import fidelity
from simulator.validation.reports import (
    Case as Published,
)
from simulator.validation.reports import (
    busy_s,
    errors_by,
    judged,
    read_cases,
    validate_reports,
    with_history,
)
from simulator.validation.sharegpt import pairs
from simulator.validation.unflushed import left_by
from tests.terminal import typed

SCENARIO = """
model: meta-llama/Llama-3.1-8B-Instruct
deployment: {engine: vllm@0.15.1, hardware: h100-sxm-80gb}
workload:
  arrivals: {kind: closed_loop, concurrency: 2}
  prompt_tokens: {kind: constant, value: 300}
  output_tokens: {kind: constant, value: 20}
  max_output_tokens: equal
  requests: 6
"""
Case = dict[str, Any]


def case(name: str = "a", **changed: Any) -> Case:
    """One case, with `changed` fields."""
    plain: Case = {"id": name, "source": "https://example.org/page", "scenario": SCENARIO, "reported": {"tpot_mean_ms": 7.0}}
    return plain | changed


def write(folder: Path, *cases: Case) -> Path:
    """Write a list."""
    path = folder / "cases.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in cases) + "\n", encoding="utf-8")
    return path


def predicted(folder: Path, each: Case) -> dict[str, float]:
    """Predicted values of one case by metric."""
    return {e["metric"]: e["predicted"] for e in validate_reports(write(folder, each))["cases"]}


def test_a_case_is_compared_with_what_simulate_gives(tmp_path: Path) -> None:
    """Each metric is that of the scenario's own run; the entry says of what it is."""
    result = simulate(load_scenario(SCENARIO)).result
    names = {"ttft_mean_ms": ("ttft_ms", "mean"), "ttft_median_ms": ("ttft_ms", "p50"), "tpot_mean_ms": ("tpot_ms", "mean")}
    reported = dict.fromkeys([*names, "itl_mean_ms", "e2e_s", "output_tok_s", "total_tok_s", "duration_s"], 1.0)
    outcome = validate_reports(write(tmp_path, case(reported=reported)))
    found = {e["metric"]: e for e in outcome["cases"]}
    for name, (metric, statistic) in names.items():
        assert found[name]["predicted"] == pytest.approx(result["metrics"][metric][statistic])
        low, high = found[name]["interval"]
        assert [low, high] == pytest.approx(result["metrics"][metric]["interval"][statistic])
    assert found["e2e_s"]["predicted"] == pytest.approx(result["metrics"]["e2el_ms"]["mean"] / 1e3)
    duration_s = found["duration_s"]["predicted"]
    assert found["output_tok_s"]["predicted"] == pytest.approx(6 * 20 / duration_s)
    assert found["total_tok_s"]["predicted"] == pytest.approx(6 * 320 / duration_s)
    entry = found["tpot_mean_ms"]
    assert entry["abs_pct_error"] == pytest.approx(abs(entry["predicted"] - 1) * 100)
    assert entry["covered"] is (entry["interval"][0] <= 1.0 <= entry["interval"][1])
    group = {"engine": "vllm", "gpu": "h100-sxm-80gb", "family": "llama", "source": "https://example.org/page"}
    assert entry["group"] == group
    assert outcome["medians"]["tpot_mean_ms"] == entry["abs_pct_error"]


OPEN = SCENARIO.replace("{kind: closed_loop, concurrency: 2}", "{kind: poisson, rate: 40}").replace("requests: 6", "duration: 20")


@pytest.mark.slow
def test_the_highest_rate_that_keeps_the_slo_is_higher_with_looser_bounds(tmp_path: Path) -> None:
    """It is `--headroom`'s."""
    found = [
        predicted(tmp_path, case(scenario=f"{OPEN}slo: {{tpot_ms: {{p99: {bound}}}}}\n", reported={"rate_within_slo": 1.0}))
        for bound in (9.0, 12.0)
    ]
    assert 1 < found[0]["rate_within_slo"] < found[1]["rate_within_slo"]


def test_a_highest_rate_without_bounds_is_skipped(tmp_path: Path) -> None:
    """In words."""
    (skipped,) = validate_reports(write(tmp_path, case(scenario=OPEN, reported={"rate_within_slo": 1.0})))["skipped"]
    assert skipped["reason"] == "no SLO is given"


def test_power_and_start_up_are_those_of_the_device_and_of_the_server(tmp_path: Path) -> None:
    """Watts lie between idle and limit; weights are loaded at the stated place's rate, and a server takes its parts."""
    lost = "failures: {events: [{kind: gpu, replica: 0, at_s: 9}], start_up: {weights_from: cache}}"
    cached = SCENARIO.replace("h100-sxm-80gb}", f"h100-sxm-80gb, {lost}}}")
    parts = ["weights_s", "compile_s", "graph_capture_s", "start_s"]
    disk, cache = (predicted(tmp_path, case(scenario=text, reported=dict.fromkeys(parts, 1.0))) for text in (SCENARIO, cached))
    assert disk["weights_s"] > 5 * cache["weights_s"] > 0
    assert disk["compile_s"] == cache["compile_s"]
    assert disk["start_s"] > sum(disk[part] for part in parts[:3])
    assert 100 < predicted(tmp_path, case(reported={"power_w": 500.0}))["power_w"] < 700


def test_rates_of_prompts_and_of_answers_are_over_the_time_that_some_request_is_at_it(tmp_path: Path) -> None:
    """With one user both follow from TTFT and TPOT; waiting in parallel counts once."""
    alone = SCENARIO.replace("concurrency: 2", "concurrency: 1")
    reported = dict.fromkeys(["prefill_tok_s", "decode_tok_s", "ttft_mean_ms", "tpot_mean_ms"], 1.0)
    found = predicted(tmp_path, case(scenario=alone, reported=reported))
    assert found["prefill_tok_s"] == pytest.approx(300 / found["ttft_mean_ms"] * 1e3)
    assert found["decode_tok_s"] == pytest.approx(1e3 / found["tpot_mean_ms"])
    assert busy_s(np.array([3.0, 0.0, 1.0]), np.array([4.0, 2.0, 1.5])) == 3.0


def test_lengths_replace_the_laws_in_order(tmp_path: Path) -> None:
    """A case with the lengths of the laws is the case without; other lengths are other figures."""
    reported = {"output_tok_s": 1.0, "ttft_mean_ms": 1.0}
    plain = predicted(tmp_path, case(reported=reported))
    assert predicted(tmp_path, case(reported=reported, lengths=[[300, 20]] * 6)) == plain
    longer = predicted(tmp_path, case(reported=reported, lengths=[[300, 20]] * 5 + [[3000, 20]]))
    assert longer["ttft_mean_ms"] > plain["ttft_mean_ms"] * 1.2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lengths": [[300, 20]] * 5}, "5 requests, and the scenario sends 6"),
        ({"lengths": [[0, 20]] * 6}, "below one token"),
        ({"scenario": SCENARIO.replace("vllm@0.15.1", "vlm")}, "vlm"),
        ({"scenario": SCENARIO.replace("8B-Instruct", "405B")}, "does not fit|do not fit|GB"),
        ({"scenario": "[]"}, "group of keys"),
        ({"reported": {"tpot_mean_ms": -3}}, "no positive number"),
        ({"reported": {"tokens_a_joule": 3}}, "'tokens_a_joule' is not known"),
    ],
)
def test_what_cannot_be_compared_is_skipped_with_the_reason(tmp_path: Path, changed: Case, words: str) -> None:
    """The other cases are judged."""
    outcome = validate_reports(write(tmp_path, case("bad", **changed), case("good")))
    (skipped,) = outcome["skipped"]
    assert skipped["id"] == "bad"
    assert any(word in skipped["reason"] for word in words.split("|")), skipped["reason"]
    assert [e["id"] for e in outcome["cases"]] == ["good"]


def test_memory_is_what_check_says_and_starting_is_right_or_wrong(tmp_path: Path) -> None:
    """`kv_tokens` as a number or in words; a number where the model does not fit is skipped."""
    from simulator.prepare import prepare

    held = prepare(load_scenario(SCENARIO)).plan.limits.kv_tokens
    assert predicted(tmp_path, case(reported={"kv_tokens": 5})) == {"kv_tokens": held}
    (entry,) = validate_reports(write(tmp_path, case(reported={"kv_tokens": int(0.95 * held)})))["cases"]
    assert entry["covered"]  # a first start
    assert entry["interval"][1] == pytest.approx(1.027 * held)
    large = SCENARIO.replace("8B-Instruct", "405B")
    for scenario, right in ((SCENARIO, "starts"), (large, "does not start")):
        for said in ("starts", "does not start (out of memory)"):
            (entry,) = validate_reports(write(tmp_path, case(scenario=scenario, reported={"kv_tokens": said})))["cases"]
            assert entry["predicted"] == right
            assert entry["covered"] is said.startswith(right)
            assert entry["abs_pct_error"] is None


def test_a_suffix_sets_the_number_of_users(tmp_path: Path) -> None:
    """`_c8` is the metric with eight users."""
    found = predicted(tmp_path, case(reported={"output_tok_s": 1.0, "output_tok_s_c2": 1.0, "output_tok_s_c6": 1.0}))
    assert found["output_tok_s_c2"] == found["output_tok_s"]
    assert found["output_tok_s_c6"] > 2 * found["output_tok_s"]


STAGED = """
model: meta-llama/Llama-3.1-8B-Instruct
deployment: {engine: vllm@0.15.1, hardware: h100-sxm-80gb}
workload:
  stages:
  - {name: first, measured: false, arrivals: {kind: batch}, requests: 3, prompt_tokens: 900, output_tokens: 9, prompt_pool: 3}
  - {name: two, arrivals: {kind: closed_loop, concurrency: 2}, requests: 6, prompt_tokens: 300, output_tokens: 20}
  - {name: six, arrivals: {kind: closed_loop, concurrency: 6}, requests: 12, prompt_tokens: 300, output_tokens: 20}
"""


def test_stages_are_judged_each_by_its_name_or_its_users(tmp_path: Path) -> None:
    """Without either a metric is of all measured stages; what no stage is is skipped."""
    names = ("tpot_mean_ms", "tpot_mean_ms.two", "tpot_mean_ms_c2", "output_tok_s_c6", "ttft_mean_ms.first", "tpot_mean_ms_c3")
    outcome = validate_reports(write(tmp_path, case(scenario=STAGED, reported=dict.fromkeys(names[:5], 1.0))))
    found = {e["metric"]: e["predicted"] for e in outcome["cases"]}
    result = simulate(load_scenario(STAGED)).result
    first, two, six = result["stages"]
    assert found["tpot_mean_ms"] == pytest.approx(result["metrics"]["tpot_ms"]["mean"])
    assert found["tpot_mean_ms.two"] == found["tpot_mean_ms_c2"] == pytest.approx(two["metrics"]["tpot_ms"]["mean"])
    assert found["output_tok_s_c6"] == pytest.approx(six["totals"]["output_throughput"], rel=0.05)
    assert found["ttft_mean_ms.first"] == pytest.approx(first["metrics"]["ttft_ms"]["mean"])
    assert [e["rests_on"]["batch"] for e in outcome["cases"]] == [False, False, False, False, True]
    _, skipped = judged(Published("a", "", STAGED, {names[5]: 1.0}))
    assert "no stage for 'c3'" in skipped[0]["reason"]


def test_errors_are_grouped_with_bias_tail_and_coverage() -> None:
    """The median of the absolute error, its 90th percentile, the signed median, and the share inside."""
    entries = [
        {"metric": "m", "reported": 100.0, "predicted": 100.0 + e, "abs_pct_error": abs(e), "covered": e != -30.0}
        for e in (-30.0, -20.0, -10.0, 10.0)
    ]
    (errors,) = errors_by(entries, lambda e: "all").values()
    assert errors.figures == pytest.approx((15.0, 27.0, -15.0))
    assert errors.coverage_pct == 75.0


def test_a_list_that_cannot_be_read_names_the_line(tmp_path: Path) -> None:
    """Bad JSON, a missing key, an empty or missing file."""
    path = write(tmp_path, case())
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(InputError) as caught:
        read_cases(path)
    assert "line 2" in str(caught.value.where)
    assert "reported" in caught.value.message
    path.write_text("\n")
    with pytest.raises(InputError, match="no case"):
        read_cases(path)
    with pytest.raises(InputError, match="no such file"):
        read_cases(tmp_path / "none.jsonl")


def test_the_command_prints_groups_or_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words for people, one JSON object for programs; errors of prediction are no failure."""
    path = write(tmp_path, case(), case("b", reported={"x": 1}))
    code, out, _ = typed(monkeypatch, capsys, "validate", "reports", str(path))
    assert code == 0
    assert "vllm on h100-sxm-80gb" in out
    assert "skipped 1 value: metric 'x' is not known" in out
    code, out, _ = typed(monkeypatch, capsys, "validate", "reports", str(path), "--json")
    assert code == 0
    assert set(json.loads(out)) == {"cases", "skipped", "medians", "one_factor"}


def test_a_server_that_is_slower_by_one_factor_at_every_load_is_named() -> None:
    """Loads forty times apart, all 1.3 times as quick; not where the factor goes with the load, is small, or few tell it."""
    group = {"engine": "vllm", "gpu": "g", "family": "f", "source": "page"}

    def entries(*ratios: float, span: float = 40.0) -> list[dict[str, Any]]:
        loads = np.geomspace(10.0, 10.0 * span, len(ratios))
        return [
            {"id": str(i), "metric": "output_tok_s", "reported": load, "predicted": ratio * load}
            | {"abs_pct_error": 1.0, "group": group}
            for i, (ratio, load) in enumerate(zip(ratios, loads, strict=True))
        ]

    (found,) = one_factors(entries(1.3, 1.25, 1.35, 1.3, 1.28))
    assert found.source == "page"
    assert (found.factor, found.low, found.high) == pytest.approx((1.3, 1.25, 1.35))
    assert found.ids == ("0", "1", "2", "3", "4")
    other = entries(1.04)[0] | {"id": "other", "covered": None, "abs_pct_error": 4.0}
    judged = [*(e | {"covered": None} for e in entries(1.3, 1.25, 1.35, 1.3, 1.28)), other]
    assert without(judged, asdict(found)) == pytest.approx(4.0)
    assert without(judged[:-1], asdict(found)) is None
    published = {"cases": judged, "skipped": [], "one_factor": [asdict(found)]}
    page = fidelity(Path(), [], {"experiments": [], "skipped": []}, [], published=published)
    assert "| 1.30 (1.25 to 1.35, 5 values) | 4.0 |" in page
    assert one_factors(entries(1.3, 1.25, 1.35, 1.3)) == []
    assert one_factors(entries(1.3, 1.25, 1.35, 1.3, 1.28, span=2.0)) == []
    assert one_factors(entries(1.0, 1.15, 1.3, 1.5, 1.7)) == []
    assert one_factors(entries(1.03, 1.04, 1.03, 1.05, 1.04)) == []
    with warnings.catch_warnings():  # answers sent at their ends have no time between tokens
        warnings.simplefilter("error")
        assert one_factors(entries(0.0, 0.0, 0.0, 0.0, 0.0)) == []


def test_runs_of_another_device_are_put_right_by_their_page() -> None:
    own = CORRECTIONS[0]
    ((written, right),) = own.words.items()
    entry = case(source=f"https://example.org/{own.page}", reported={own.metric: own.values[0]})
    entry["scenario"] = SCENARIO.replace("hardware: h100-sxm-80gb", written)
    assert right in corrected(entry)[0]["scenario"]
    for other in ({"source": "https://example.org/page"}, {"reported": {"tpot_mean_ms": 1.0}}):
        assert corrected(entry | other) == (entry | other, "")


def test_answers_are_as_long_as_the_client_allows_where_its_page_says_so() -> None:
    """Runs of SGLang of one page, which differ in what the list says of their lengths."""
    scenario = SCENARIO.replace("  max_output_tokens: equal\n  requests: 6\n", "  requests: 6\n  drain_s: 30000\n")
    entry = case(source="https://example.org/docs/performance-lab/deepseek-v3.2/h200.md", scenario=scenario)
    found, heading = corrected(entry | {"reported": {"output_tok_s": 1427.44}})
    assert load_scenario(found["scenario"]).workload.max_output_tokens == "equal"
    assert "max_completion_tokens" in heading
    assert corrected(entry | {"reported": {"output_tok_s": 2702.26}})[1] == ""


def test_a_law_of_two_numbers_tells_less_of_lengths_than_a_list_of_them(tmp_path: Path) -> None:
    law = SCENARIO.replace("{kind: constant, value: 20}", "{kind: lognormal, mean: 20, p99: 60}")
    cases = [case(), case(scenario=law), case(scenario=law, lengths=[[300, 20]] * 6)]
    found = validate_reports(write(tmp_path, *cases))["cases"]
    assert [e["rests_on"]["by_law"] for e in found] == [False, True, False]


def test_pairs_of_sharegpt_have_the_means_that_are_told_and_many_short_answers() -> None:
    """Prompts' median and 95th percentile are published too: 136 and 767 tokens of 1,000 pairs with answers of 192."""
    prompt, answer = np.array(pairs(1000, 215, 200)).T
    assert (prompt.mean(), answer.mean()) == (pytest.approx(215, rel=0.01), pytest.approx(200, rel=0.01))
    assert np.percentile(prompt, [50, 95]) == pytest.approx([136, 767], rel=0.3)
    assert 0.3 < (answer < 60).mean() < 0.45
    assert answer.max() < 2048
    assert np.corrcoef(prompt, answer)[0, 1] < -0.1


def test_lengths_of_sharegpt_by_their_means_are_drawn_as_its_pairs(tmp_path: Path) -> None:
    """In a batch a short answer waits for the prompts of all others between its tokens."""
    text = (
        "name: {}\nmodel: Qwen/Qwen3-14B\ndeployment: {{engine: sglang@0.5.5, hardware: a100-sxm-80gb}}\n"
        "workload: {{arrivals: {{kind: batch}}, requests: 1000, prompt_tokens: {{kind: lognormal, mean: 215, p99: 950}}, "
        "output_tokens: {{kind: lognormal, mean: 200, p99: 800}}, max_output_tokens: equal}}\n"
    )
    notes = {"law": "", "pairs": "ShareGPT lengths by means"}
    cases = [case(n, scenario=text.format(n), reported={"tpot_mean_ms": 1.0}, note=note) for n, note in notes.items()]
    found = {e["id"]: e for e in validate_reports(write(tmp_path, *cases))["cases"]}
    assert found["pairs"]["predicted"] > 1.3 * found["law"]["predicted"]
    assert [found[name]["rests_on"]["by_law"] for name in notes] == [True, False]
    again = validate_reports(write(tmp_path, *cases), laws=True)["cases"]
    assert again[-1] | {"id": "law", "group": found["law"]["group"]} == found["law"]
    assert [e["id"] for e in again] == ["law", "pairs", "pairs, by law"]


def test_a_batch_waits_for_what_a_fresh_server_compiles() -> None:
    """The first of a page's batches by one launch; experts on Triton's kernels."""
    text = (
        "name: {}\nmodel: Qwen/Qwen3-30B-A3B\ndeployment: {{engine: sglang@0.5.6, hardware: h100-sxm-80gb}}\n"
        "workload: {{arrivals: {{kind: batch}}, requests: 2, prompt_tokens: 100, output_tokens: 2}}\n"
    )
    cases = [Published(name, "page", text.format(name), {"ttft_mean_ms": 1.0}) for name in ("first", "second")]
    found = [judged(*each)[0][0] for each in with_history(cases)]
    waited_ms = float(own_overheads("sglang")["start_s"]["value"]) * 1e3
    assert found[0]["predicted"] == pytest.approx(found[1]["predicted"] + waited_ms)


def test_a_server_that_is_not_flushed_keeps_the_prompts_of_the_runs_before(tmp_path: Path) -> None:
    """Later runs compute what is longer than before; the first prompt is known to every run, from its warm-up."""
    text = (
        "name: {}\nmodel: meta-llama/Llama-3.1-8B\ndeployment: {{engine: sglang@0.5.6, hardware: a100-sxm-80gb}}\n"
        "workload: {{arrivals: {{kind: closed_loop, concurrency: 1}}, requests: {}, prompt_tokens: 9, output_tokens: 9}}\n"
    )
    runs = {"one": [[4000, 2]], "two": [[4000, 2], [4000, 2]], "more": [[4000, 2], [8000, 2]]}
    cases = [
        case(name, scenario=text.format(name, len(own)), reported={"ttft_mean_ms": 1.0}, lengths=own)
        for name, own in runs.items()
    ]
    cold = {e["id"]: e["predicted"] for e in validate_reports(write(tmp_path, *cases[::2]))["cases"]}
    noted = [each | {"note": "server not flushed between runs"} for each in cases]
    warm = {e["id"]: e["predicted"] for e in validate_reports(write(tmp_path, *noted))["cases"]}
    assert cold["one"] > 4 * warm["one"]
    assert warm["two"] == pytest.approx((cold["one"] + warm["one"]) / 2)
    assert warm["more"] < cold["more"] - (cold["one"] - warm["one"]) * 0.9


def test_prompts_of_runs_are_lines_of_pieces_in_the_order_of_their_last_use() -> None:
    """Two runs' prompt 0 of 10 and 6 tokens in pages of 2, prompt 1 of one; then the warm-up with the first."""
    pieces = left_by([((10, 4), (4, 1)), ((6, 3),)], ((6, 3), (5, 5), (9, 9)), 2)
    tokens = [(piece.runs[0][:2], piece.tokens, piece.parent) for piece in pieces]
    assert tokens == [((0, 6), 4, 4), ((3, 0), 2, 0), ((1, 0), 4, -1), ((5, 0), 2, 4), ((0, 0), 6, -1), ((6, 0), 2, 4)]
