"""What runs in a row share changes nothing in them."""

from __future__ import annotations

from pathlib import Path

from engine_models.cost import settings
from simulator.config.load import load_scenario, read_scenario
from simulator.io.text import plain
from simulator.planning import one_point
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.run import run_prepared
from tests.planning.test_sweep import SCENARIO


def prepared_at(rate: float, tokens: int = 2048) -> Prepared:
    varied = [f"workload.arrivals.rate={rate}", f"deployment.engine_args={{max_num_batched_tokens: {tokens}}}"]
    return prepare(load_scenario(SCENARIO, varied))


def result_at(rate: float, tokens: int = 2048) -> str:
    found = run_prepared(prepared_at(rate, tokens))
    assert not isinstance(found.requests, Path)
    return repr((plain(found.result), {name: list(column) for name, column in found.requests.items()}))


def test_step_times_of_an_earlier_run_give_the_same_run() -> None:
    settings._kept.clear()
    alone = result_at(8)
    settings._kept.clear()
    busy = result_at(60)
    assert len(settings._kept) == 1
    ((_, model),) = settings._kept.values()
    model.launch_s = model.launch_wait_s = 1.0  # of the last step
    assert result_at(8) == alone
    assert len(settings._kept) == 1
    assert busy != alone
    result_at(8, 4096)
    assert len(settings._kept) == 2


def test_no_more_step_times_are_kept_than_said() -> None:
    settings._kept.clear()
    for tokens in range(2048, 2048 + settings.KEPT + 3):
        prepared_at(8, tokens).times()
    assert len(settings._kept) == settings.KEPT


def test_points_that_differ_in_their_arrivals_share_a_deployment_and_no_more() -> None:
    one_point._resolved.clear()
    alone = [prepared_at(rate, tokens) for rate in (8, 60) for tokens in (2048, 4096)]
    shared = [one_point.shared_deployment(each.scenario) for each in alone]
    assert len(one_point._resolved) == 2
    assert shared[2].kernels is shared[0].kernels
    assert shared[2].scenario is alone[2].scenario
    for mine, own in zip(shared, alone, strict=True):
        assert plain(run_prepared(mine).result) == plain(run_prepared(own).result)
    for said in ([], ["deployment.router=round_robin"]):  # the default too
        one_point.shared_deployment(load_scenario(SCENARIO, said))
    assert len(one_point._resolved) == 4
    one_point.shared_deployment(load_scenario(SCENARIO, ["deployment.failures={mtbf_h: 1000, of: replica}"]))
    assert len(one_point._resolved) == 4


def test_no_more_deployments_are_kept_than_said() -> None:
    one_point._resolved.clear()
    for tokens in range(2048, 2048 + one_point.KEPT + 3):
        one_point.shared_deployment(prepared_at(8, tokens).scenario)
    assert len(one_point._resolved) == one_point.KEPT


def test_a_scenario_that_was_read_before_is_the_same_and_stays_as_it_was() -> None:
    written = read_scenario(SCENARIO, ["workload.duration=3"])
    varied = ["workload.arrivals.rate=5", "deployment.engine_args={max_num_seqs: 8}"]
    assert load_scenario(written, varied=varied) == load_scenario(SCENARIO, ["workload.duration=3"], varied=varied)
    assert load_scenario(written) == load_scenario(SCENARIO, ["workload.duration=3"])
