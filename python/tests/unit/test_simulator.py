"""The simulator: deterministic, and the promises of the scheduling rules at small scale."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from inferential.config.schema import InferentialConfig
from inferential.errors import ConfigError
from inferential.simulate_cli import run, table
from inferential.simulator import (
    Fleet,
    Loop,
    Machine,
    Scenario,
    Variant,
    _Simulation,
    jain,
    load_scenario,
    simulate,
    with_settings,
)

REFUSE = Variant(name="refuse", settings={"scheduling.early_refusal": "predictive"})
SCENARIOS = sorted((Path(__file__).parents[2] / "examples" / "scenarios").glob("*.yaml"))


def scenario(*fleets: Fleet, **changes) -> Scenario:
    return Scenario(**{"fleets": list(fleets), "duration_s": 5.0, "warm_up_s": 1.0, "variants": [REFUSE], **changes})


def test_the_same_seed_gives_the_same_bytes():
    made = [json.dumps(simulate(scenario(Fleet(clients=150)))) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != json.dumps(simulate(scenario(Fleet(clients=150), seed=2)))


def test_95_robots_are_in_time():
    [row] = simulate(scenario(Fleet(clients=95)))
    assert row["in_time"] >= 0.99


def test_goodput_stays_at_its_peak_past_saturation():
    rows = simulate(scenario(Fleet(clients=1), loads=[100.0, 120.0, 240.0], duration_s=8.0))
    peak = max(row["goodput"] for row in rows)
    assert rows[-1]["goodput"] >= 0.95 * peak
    assert rows[-1]["jain"] >= 0.95


def test_priority_0_under_twice_the_load():
    first, others = Fleet(name="first", clients=24, priority=0), Fleet(name="others", clients=216, priority=1)
    [row] = simulate(scenario(first, others, duration_s=8.0))
    assert row["fleets"]["first"]["in_time"] >= 0.995
    assert row["fleets"]["others"]["in_time"] >= 0.25


def test_nobody_is_left_out_by_the_rhythm_of_calls():
    """Calls of 25 ms and robots at 10 Hz: whoever comes just after a call has left does so every time."""
    first, others = Fleet(name="first", clients=24, priority=0), Fleet(name="others", clients=216, priority=1)
    [row] = simulate(scenario(first, others, machines=[Machine(noise_ms=0.2, overhead_ms=2.0)], duration_s=12.0))
    assert row["fleets"]["others"]["jain"] >= 0.95
    assert row["fleets"]["first"]["in_time"] >= 0.995


def test_goodput_grows_past_saturation():
    rows = simulate(scenario(Fleet(clients=1), loads=[110.0, 240.0], duration_s=8.0))
    assert rows[1]["goodput"] >= rows[0]["goodput"]


@pytest.mark.parametrize(("arrivals", "rest"), [("periodic", 0.2), ("burst", 0.05)])
def test_priority_0_with_less_time_than_the_others(arrivals, rest):
    """Of a burst of ten none is late, so calls of the others are short enough that one may come at any time."""
    first = Fleet(name="first", clients=10, priority=0, budget_ms=35.0, arrivals=arrivals)
    others = Fleet(name="others", clients=200, priority=1, budget_ms=200.0)
    [row] = simulate(scenario(first, others, duration_s=8.0))
    assert row["fleets"]["first"]["in_time"] >= 0.99
    assert row["fleets"]["others"]["in_time"] >= rest


def test_what_surrounds_a_call_counts():
    [plain] = simulate(scenario(Fleet(clients=110)))
    [gaps] = simulate(scenario(Fleet(clients=110), machines=[Machine(handover_ms=2.0)]))
    [far] = simulate(scenario(Fleet(clients=20), loop=Loop(wire_ms=5.0)))
    [near] = simulate(scenario(Fleet(clients=20)))
    assert gaps["goodput"] < plain["goodput"]
    assert far["p50_ms"] == pytest.approx(near["p50_ms"] + 10.0, abs=1.0)


@pytest.mark.parametrize("arrivals", ["periodic", "poisson", "burst"])
def test_arrivals_come_at_their_rate(arrivals):
    fleet = Fleet(clients=20, hz=20.0, arrivals=arrivals, budget_ms=500.0)
    [row] = simulate(scenario(fleet, variants=[Variant(name="plain")], duration_s=11.0))
    assert row["sent"] == pytest.approx(20 * 20 * 10, rel=0.05)
    assert sum(row["statuses"].values()) == row["sent"]


SPREAD = Variant(name="spread", settings={"scheduling.early_refusal": "predictive", "scheduling.phase_shift": "spread"})


def test_a_burst_spreads_out_where_the_server_asks_and_clients_follow():
    burst = Fleet(clients=80, arrivals="burst", jitter_ms=5.0)
    follows, follows_not = (
        simulate(scenario(burst.model_copy(update={"follows_phase_shifts": f}), variants=[REFUSE, SPREAD]))
        for f in (True, False)
    )
    together, spread = follows
    assert together["in_time"] < 0.7
    assert spread["in_time"] >= 0.99
    assert follows_not[0]["in_time"] == together["in_time"]
    assert follows_not[1]["in_time"] < 0.7
    assert spread["sent"] >= 0.98 * together["sent"], "it costs less than a period each"


def test_two_replicas_carry_about_twice_as_much():
    one, two = (
        simulate(
            scenario(
                Fleet(clients=300),
                machines=[Machine(replicas=n)],
                loop=Loop(receive_ms=0, dispatch_ms=0, reply_ms=0),
            )
        )[0]["goodput"]
        for n in (1, 2)
    )
    assert two == pytest.approx(2 * one, rel=0.15)


def test_a_slow_loop_counts():
    [fast] = simulate(scenario(Fleet(clients=90)))
    [slow] = simulate(scenario(Fleet(clients=90), loop=Loop(receive_ms=0.6, reply_ms=0.6)))
    assert slow["in_time"] < fast["in_time"]


@pytest.mark.parametrize("latest_only", [False, True])
def test_requests_leave_no_reference_cycles(latest_only):
    crowded = scenario(Fleet(clients=300, jitter_ms=40.0, latest_only=latest_only, hz=20.0), duration_s=3.0)
    simulation = _Simulation(crowded, crowded.variants[0], 1.0)
    gc.collect()
    gc.disable()
    try:
        tally = simulation.run()[0]
        found = gc.collect()
    finally:
        gc.enable()
    assert len(tally.statuses) >= 2
    assert found < tally.sent / 100


def test_jain():
    assert jain([3, 3, 3]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([]) == 1.0


def test_settings_by_path():
    config = with_settings(InferentialConfig(), {"scheduling.min_share": 0.2})
    assert config.scheduling.min_share == 0.2
    with pytest.raises(ConfigError, match="nonsense"):
        with_settings(InferentialConfig(), {"nonsense.min_share": 0.2})
    with pytest.raises(ConfigError, match="min_share"):
        with_settings(InferentialConfig(), {"scheduling.min_share": 2})


def test_files(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("fleets: [{clients: 3}]\nduration_s: 3\n")
    text = run(file, tmp_path / "out.json")
    assert text == table(json.loads((tmp_path / "out.json").read_text())["results"])
    assert "| 1 | default | fleet | 30 | 100.00% |" in text
    file.write_text("fleets: [{robots: 3}]")
    with pytest.raises(ConfigError, match="robots"):
        load_scenario(file)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_scenario(tmp_path / "missing.yaml")


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "s.json"
    file.write_text('{"fleets": [{"clients": 3}], "duration_s": 3, "loads": [1, 2]}')
    run(file, plots=tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.stem)
def test_examples_load(file):
    loaded = load_scenario(file)
    for variant in loaded.variants:
        with_settings(loaded.config, variant.settings)


def test_unknown_fields_are_errors():
    with pytest.raises(ValidationError):
        Fleet(budget=3)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("fleets: []", "fleets is a list: list should have at least 1 item"),
        ("loads: []", "loads is a list"),
        ("variants: []", "variants is a list"),
        ("machines: []", "machines is a list"),
        ("loads: [.inf]", "loads.0 is inf"),
        ("fleets: [{hz: .inf}]", "fleets.0.hz is inf"),
        ("fleets: [{hz: .nan}]", "fleets.0.hz is nan"),
        ("warm_up_s: .nan", "warm_up_s is nan"),
        ("duration_s: 2.0", "warm_up_s is 2; it must be less than duration_s, which is 2"),
        ("fleets: [{}, {}]", "fleets: two are named 'fleet'; give each a name of its own"),
        ("variants: [{name: a}, {name: a}]", "variants: two are named 'a'"),
        ("variants: [{}]", "variants.0.name is missing"),
        ("fleets: [{client: 3}]", "fleets.0.client: there is no such setting; did you mean 'clients'"),
        ("fleets: [{name: a}]\nfleets: [{name: b}]", "line 2: 'fleets' is in line 1 already"),
        ("fleets: [", "is no YAML"),
        ("- a", "a table of sections, not list"),
    ],
)
def test_a_wrong_scenario_is_told_like_wrong_settings(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_scenario(file)
    assert str(e.value).count(str(file)) == 1
    assert word in str(e.value)
    assert "pydantic" not in str(e.value)


def test_replicas_of_one_model_may_differ() -> None:
    machines = [Machine(call_ms=10.0, item_ms=0.0), Machine(call_ms=50.0, item_ms=0.0)]
    fleets = [Fleet(clients=4, hz=10.0, budget_ms=30.0, arrivals="poisson")]
    predictive = {"scheduling.early_refusal": "predictive"}
    (row,) = simulate(Scenario(fleets=fleets, machines=machines, variants=[Variant(name="a", settings=predictive)]))
    # Two requests in five come while the fast one is busy; the slow one is no use for any of them.
    assert row["in_time"] > 0.9
