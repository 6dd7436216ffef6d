"""A live server, measured: the law that it has is found, and its runs are predicted; one that misbehaves is refused in words."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra [endpoint] is not installed")

from aiohttp import web

from hardware_profiles.calibration import read_calibration
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.endpoint.calibrate import Options, Outcome, calibrate, check_scenario, experiment
from simulator.endpoint.client import Client, Target, token_times
from simulator.endpoint.experiment import Limits, design, read_measurements
from simulator.endpoint.prompts import Wording
from simulator.endpoint.replay import Sent, compare, load_of, replay, send
from simulator.io.tables import read_columns, write_columns
from simulator.prepare import prepare
from tests.endpoint.server import FRONT_S, JumpingLoop, Server, served

SCENARIO: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "deployment": {
        "engine": "vllm",
        "hardware": "h100-sxm-80gb",
        "engine_args": {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 2048,
            "async_scheduling": False,
            "enable_prefix_caching": False,
        },
    },
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 6.0},
        "prompt_tokens": {"kind": "lognormal", "mean": 150, "p99": 900, "max": 1000},
        "output_tokens": {"kind": "lognormal", "mean": 20, "p99": 60},
        "requests": 60,
    },
}
OPTIONS = Options(repeats=1, max_rows=8)


def with_load(**workload: Any) -> dict[str, Any]:
    return {**SCENARIO, "workload": {**SCENARIO["workload"], **workload}}


def measured(server: Server, path: Path, options: Options = OPTIONS, **asked: Any) -> tuple[Any, Any, list[str]]:
    prepared = check_scenario(prepare(load_scenario(SCENARIO)))

    async def go(url: str, loop: JumpingLoop) -> Any:
        async with Client(Target.of(url, **asked), said.append, loop.time) as client:
            return await experiment(client, prepared, options, path, lambda text: None)

    said: list[str] = []
    found, head, notes = served(server, go)
    return found, head, [*said, *notes]


def calibrated(server: Server, path: Path, options: Options = OPTIONS) -> Outcome:
    found, head, notes = measured(server, path, options)
    return calibrate(check_scenario(prepare(load_scenario(SCENARIO))), found, head, path, notes)


def validated(server: Server, scenario: dict[str, Any], **asked: Any) -> Any:
    prepared = prepare(load_scenario(scenario))
    load, _ = load_of(prepared, 200, 100.0)
    sent = Sent.of(load)

    async def go(url: str, loop: JumpingLoop) -> Any:
        async with Client(Target.of(url, **asked), lambda text: None, loop.time) as client:
            return await send(client, prepared, sent, lambda text: None)

    served(server, go)
    return compare(sent, prepared, "server")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("calibration")
    outcome = calibrated(Server(), folder / "m.jsonl")
    outcome.calibration.write(folder / "c.json")
    return folder / "c.json", outcome


def test_a_servers_law_and_front_end_are_found(made: tuple[Path, Outcome]) -> None:
    _, outcome = made
    found = outcome.calibration
    assert max(abs(row["fit_error_pct"]) for row in found.table) < 1.0
    assert max(abs(row["after"] / row["measured"] - 1) for row in found.table) < 0.02
    assert found.steps is not None
    assert found.steps["front_s"] == pytest.approx(FRONT_S, rel=0.1)
    assert found.domain["rows"] == (1, 8)
    assert outcome.notes == ()


@pytest.mark.parametrize(
    "load", [{}, {"arrivals": {"kind": "closed_loop", "concurrency": 6}, "requests": 40}], ids=["poisson", "clients"]
)
def test_runs_of_the_server_are_predicted_by_the_calibration_file(made: tuple[Path, Outcome], load: dict[str, Any]) -> None:
    path, _ = made
    scenario = with_load(**load)
    scenario["deployment"] = {**SCENARIO["deployment"], "calibration": str(path)}
    found = validated(Server(), scenario)
    errors = {(e["metric"], e["statistic"]): e["abs_pct_error"] for e in found.entries}
    assert max(errors[metric, "mean"] for metric in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "output_throughput")) < 4.0
    assert max(errors.values()) < 8.0
    assert found.notes == ()


def test_a_law_is_refused_for_another_deployment(made: tuple[Path, Outcome]) -> None:
    scenario = {**SCENARIO, "model": "Qwen/Qwen3-4B", "deployment": {**SCENARIO["deployment"], "calibration": str(made[0])}}
    with pytest.raises(InputError, match="model Qwen/Qwen3-8B was measured, not Qwen/Qwen3-4B"):
        prepare(load_scenario(scenario))
    assert read_calibration(made[0]).steps is not None


def test_measurements_are_kept_and_taken_up(tmp_path: Path) -> None:
    path, server = tmp_path / "m.jsonl", Server()
    with pytest.raises(InputError, match="points were measured, and a fit needs"):
        calibrated(server, path, replace(OPTIONS, max_requests=4))
    first = read_measurements(path)[1]
    assert 2 <= len(first) <= 4
    path.write_text(path.read_text() + '{"point": {"kind": "lo')  # killed while it wrote
    found, _, notes = measured(Server(port=server.port), path)
    assert read_measurements(path)[1] == found
    assert found[: len(first)] == first
    assert len(found) > 20
    assert f"{len(first)} measurements of {path} are taken over" in notes
    with pytest.raises(InputError, match="of another model: a-model, not b-model"):
        measured(Server(name="b-model", port=server.port), path)


def test_a_server_that_remembers_prompts_is_never_sent_one_of_an_earlier_session(tmp_path: Path) -> None:
    whole: list[Any] = []
    for name in ("a", "b"):
        first, second = Server(), Server()
        measured(first, tmp_path / name, replace(OPTIONS, max_requests=3))
        validated(second, with_load(requests=3))
        whole += [tuple(prompt) for prompt in first.prompts + second.prompts]
    assert len(set(whole)) == len(whole)


def test_text_is_measured_by_the_servers_own_count(tmp_path: Path) -> None:
    found, _, notes = measured(Server(ids=False), tmp_path / "m.jsonl")
    assert "prompts are text: 2.00 tokens a word and 7 beside them" in notes
    assert {abs(each.requests[0].prompt_tokens - each.point.prompt) for each in found} <= {0, 1}


def limited(number: int) -> web.Response | None:
    return web.Response(status=429, headers={"Retry-After": "2"}) if number in (3, 4) else None


def test_a_limited_rate_is_waited_out_and_named(tmp_path: Path) -> None:
    found, _, notes = measured(Server(refuse=limited), tmp_path / "m.jsonl")
    assert any("limits the rate (429)" in text for text in notes)
    assert max(each.requests[0].ttft_s for each in found if each.point.rows == 1) < 0.2  # of the try that was served


BAD = {
    "another model": (Server(), {"model": "a-modle"}, "has no model 'a-modle'; it lists a-model"),
    "no stream": (Server(streams=False), {}, "does not stream"),
    "held back": (Server(held_back=True), {}, "came at once: something holds the stream back"),
    "wrong count": (Server(counts=lambda tokens: 4), {}, "counts 4 tokens in a prompt of 64"),
    "always 429": (Server(refuse=lambda number: web.Response(status=429)), {}, "answered 429"),
    "broken": (Server(dies_after=3), {}, "the connection broke"),
    "slow": (Server(law=replace(Server().law, products=((0, 9.0), (64, 9.0)))), {"timeout_s": 5.0}, "sent nothing for 5 s"),
    "no key": (Server(refuse=lambda number: web.Response(status=401)), {}, "answered 401"),
}


@pytest.mark.parametrize(("server", "asked", "words"), BAD.values(), ids=BAD)
def test_a_server_that_misbehaves_is_refused_in_words(server: Server, asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        measured(server, tmp_path / "m.jsonl", **asked)


def test_steps_that_no_device_reaches_and_another_model_are_named(tmp_path: Path) -> None:
    quick = replace(Server().law, products=((0, 0.002), (64, 0.003), (2048, 0.2)))
    with pytest.raises(InputError, match=r"itl_ms is 2\.\d+, and NVIDIA H100.* above the roofline"):
        calibrated(Server(law=quick), tmp_path / "m.jsonl")
    with pytest.raises(InputError, match=r"measured with Qwen/Qwen3-4B, and the scenario's model is Qwen/Qwen3-8B"):
        measured(Server(name="Qwen/Qwen3-4B"), tmp_path / "n.jsonl")


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    async def go(url: str, loop: JumpingLoop) -> Any:
        async with Client(Target.of("http://127.0.0.1:9"), lambda text: None) as client:
            return await client.model()

    with pytest.raises(InputError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        served(Server(), go)


def test_a_server_that_goes_away_ends_the_run_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    prepared = prepare(load_scenario(with_load(requests=40)))
    load, _ = load_of(prepared, 40, 100.0)
    sent = Sent.of(load)

    async def go(url: str, loop: JumpingLoop) -> None:
        async with Client(Target.of(url, model="a-model"), lambda text: None, loop.time) as client:

            def left(text: str) -> None:
                if sent.counts()["sent"] >= 5:
                    client.target = gone

            gone = Target.of("http://127.0.0.1:9", model="a-model")
            await replay(client, sent, Wording(1, (1000, 9000)), left)

    served(Server(), go)
    counts = sent.counts()
    assert counts["finished"] >= 4
    assert 10 <= counts["failed"] < 35
    assert "nothing answers" in sent.gone
    write_columns(sent.columns(), tmp_path / "requests.parquet")
    assert len(read_columns(tmp_path / "requests.parquet")["error"]) == counts["sent"]


def test_refused_and_broken_requests_are_counted_apart() -> None:
    server = Server(refuse=lambda number: web.Response(status=503) if number in (5, 9, 12) else None)
    found = validated(server, with_load(requests=20))
    assert found.sent.counts() == {"sent": 20, "finished": 17, "rejected": 3, "failed": 0}
    assert "3 of 20 requests had no whole answer" in found.notes[0]


def test_shared_prefixes_are_the_same_tokens() -> None:
    server = Server()
    validated(server, with_load(requests=6, shared_prefix={"groups": 1, "tokens": 100}))
    sent = [prompt for prompt in server.prompts[1:] if isinstance(prompt, list)]
    assert len({tuple(prompt[:100]) for prompt in sent}) == 1
    assert len({tuple(prompt[:101]) for prompt in sent}) == len(sent) == 6


def test_pieces_without_text_at_the_ends_are_no_tokens() -> None:
    from simulator.endpoint.client import Event

    events = [Event(0.0, False), Event(1.0, True), Event(2.0, False), Event(3.0, True), Event(4.0, False)]
    assert token_times(events, 3) == [1.0, 2.0, 3.0]
    assert token_times(events, None) == [1.0, 3.0]


@pytest.mark.parametrize("command", ["calibrate", "validate"])
def test_commands_refuse_a_server_that_is_down_and_write_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulator.cli import main

    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(json.dumps(SCENARIO))
    monkeypatch.setattr("sys.argv", ["capacity-plan", command, "endpoint", "127.0.0.1:9", "s.yaml"])
    for words in ("nothing answers at http://127.0.0.1:9", "pip install 'capacity-plan[endpoint]'"):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
        monkeypatch.setitem(sys.modules, "aiohttp", None)


def test_the_design_stays_within_the_servers_memory() -> None:
    points = design(Limits(64, 20_000, 2048, 4000, 8192), 32, 1)
    assert all(point.rows * (point.prompt + point.output) <= 14_000 for point in points)
    assert max(point.rows for point in points) == 32
    assert {point.prompt for point in points} >= {1, 4000}
