"""Every setting does something: for each, the test that would fail if it did not."""

from __future__ import annotations

import ast
import functools
import socket
import urllib.request
from pathlib import Path

import pytest

from inferential import Server, local
from inferential.config import table
from inferential.config.schema import ClientConfig, InferentialConfig, ModelConfig
from inferential.engine import Engine
from inferential.scheduling.request import Replica
from inferential.types import Status
from tests.unit.engine.rig import Numbers, Rig

TESTS = Path(__file__).parents[1]
ANY = "tcp://127.0.0.1:0"

SERVER = "integration/test_server.py"
ENGINE = "unit/engine"
HERE = "unit/test_settings.py"

PROOFS = {
    "transport.bind": f"{SERVER}::test_bind_errors_say_what_is_wrong",
    "transport.max_message_bytes": f"{SERVER}::test_a_message_over_the_limit_costs_its_sender_the_connection",
    "transport.outbound_queue_messages": f"{SERVER}::test_replies_for_a_client_that_does_not_read_are_bounded",
    "transport.outbound_queue_bytes": f"{SERVER}::test_an_outbound_queue_is_bounded_in_bytes",
    "transport.idle_client_timeout_s": f"{SERVER}::test_idle_clients_are_evicted_and_come_back",
    "scheduling.strategy": f"{ENGINE}/test_strategies.py::test_who_gets_a_shared_slot",
    "scheduling.options": f"{HERE}::test_a_strategys_options",
    "scheduling.policy": f"{ENGINE}/test_order.py::test_other_policies",
    "scheduling.pipeline_dispatch.enabled": f"{ENGINE}/test_slots.py::test_slots_of_its_own_do_not",
    "scheduling.max_concurrent_dispatch": f"{ENGINE}/test_slots.py::test_max_concurrent_dispatch_counts_calls_of_all_models",
    "scheduling.default_latency_budget_ms": f"{ENGINE}/test_order.py::test_whose_budget_counts",
    "scheduling.default_step_ms": f"{ENGINE}/test_order.py::test_the_default_step",
    "scheduling.urgency_weight_ms": f"{ENGINE}/test_order.py::test_urgency_has_a_weight",
    "scheduling.overdue_weight": f"{ENGINE}/test_order.py::test_overdue_is_capped",
    "scheduling.overdue_cap_ms": f"{ENGINE}/test_order.py::test_overdue_is_capped",
    "scheduling.overrun_ms": f"{ENGINE}/test_outcomes.py::test_then_it_expires_and_its_result_is_dropped",
    "scheduling.min_share": f"{ENGINE}/test_overload.py::test_no_share_means_strict",
    "scheduling.priority_window_ms": f"{ENGINE}/test_order.py::test_how_far_a_level_goes_ahead",
    "scheduling.contention_hold_ms": f"{ENGINE}/test_overload.py::test_contention_is_forgotten",
    "scheduling.batch_window": f"{ENGINE}/test_batches.py::test_off_means_at_once",
    "scheduling.deadline_margin_ms": f"{ENGINE}/test_batches.py::test_the_margin_for_the_reply",
    "scheduling.explain_records": f"{ENGINE}/test_strategies.py::test_explain_keeps_so_many",
    "scheduling.early_refusal": f"{HERE}::test_early_refusal",
    "scheduling.phase_shift": f"{ENGINE}/test_phase_shift.py::test_those_who_had_to_wait_are_asked_once_and_by_less_than_a_period",
    "queue.request_ttl_ms": f"{ENGINE}/test_outcomes.py::test_the_ttl_bounds_every_budget",
    "queue.max_requests": f"{ENGINE}/test_queue.py::test_all_queues_together_drop_the_oldest_of_all",
    "queue.max_requests_per_model": f"{ENGINE}/test_queue.py::test_drop_oldest",
    "queue.max_bytes": f"{ENGINE}/test_queue.py::test_all_queues_together_drop_the_oldest_of_all",
    "queue.max_bytes_per_model": f"{ENGINE}/test_queue.py::test_bytes_of_a_model",
    "queue.overflow": f"{ENGINE}/test_queue.py::test_reject_newest",
    "dispatch.max_retries": f"{ENGINE}/test_retries.py::test_on_another_replica",
    "dispatch.call_timeout_ms": f"{ENGINE}/test_outcomes.py::test_a_call_without_an_answer_is_given_up",
    "dispatch.staging": f"{ENGINE}/test_slots.py::test_one_call_is_staged_just_in_time",
    "dispatch.retry_after_ms": f"{ENGINE}/test_strategies.py::test_retry_after_of_unavailable",
    "dispatch.health_timeout_ms": "integration/test_ray_settings.py::test_how_long_a_silent_replica_lives",
    "cadence.alpha": "unit/tracking/test_tracking.py::test_alpha_weighs_the_newest_interval",
    "cadence.forget_after_s": f"{ENGINE}/test_queue.py::test_forget_after",
    "metrics.ring_size": f"{HERE}::test_points_that_are_kept",
    "metrics.prometheus_port": f"{HERE}::test_prometheus",
    "metrics.prometheus_bind": f"{HERE}::test_prometheus",
    "metrics.prometheus_client_label": f"{HERE}::test_prometheus",
    "ray.enabled": f"{SERVER}::test_without_ray_names_are_an_error",
    "ray.address": "integration/test_ray_settings.py::test_embedded_ray",
    "ray.namespace": "integration/test_ray_settings.py::test_embedded_ray",
    "ray.num_cpus": "integration/test_ray_settings.py::test_embedded_ray",
    "ray.direct_path": "integration/test_ray_direct.py::test_servable_models",
    "ray.poll_s": "integration/test_ray_settings.py::test_how_often_deployments_are_looked_up",
    "cpu.max_wakeup_latency_us": "integration/test_cpu_latency.py::test_processors_are_kept_awake_while_requests_come",
    "lifecycle.grace_period_s": f"{SERVER}::test_what_is_left_after_the_grace_period_is_answered_shutting_down",
    "models.known.*.max_inflight": f"{ENGINE}/test_slots.py::test_max_inflight_counts_calls_of_a_model_over_all_replicas",
    "models.known.*.latency_budget_ms": f"{HERE}::test_budgets_of_models_and_clients",
    "models.known.*.max_batch_size": f"{HERE}::test_a_models_batches_are_bounded",
    "models.known.*.latest_only": f"{ENGINE}/test_outcomes.py::test_newest_wins",
    "models.known.*.device": f"{ENGINE}/test_slots.py::test_models_on_one_device_take_turns_there",
    "models.known.*.affinity": f"{ENGINE}/test_slots.py::test_affinity_keeps_a_client_on_its_replica_while_that_lives",
    "models.known.*.call_ms": f"{HERE}::test_declared_times_are_believed_until_learned",
    "models.known.*.item_ms": f"{HERE}::test_declared_times_are_believed_until_learned",
    "clients.*.latency_budget_ms": f"{HERE}::test_budgets_of_models_and_clients",
    "clients.*.share": f"{ENGINE}/test_overload.py::test_shares_weigh_in_deadline_order_too",
}


@functools.cache
def sources(path: str) -> dict[str, str]:
    """The source of every test in a file."""
    text = (TESTS / path).read_text(encoding="utf-8")
    return {
        node.name: "\n".join(ast.get_source_segment(text, part) or "" for part in (*node.decorator_list, node))
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_setting_has_a_proof_and_every_proof_a_setting() -> None:
    assert {name for name, _, _ in table.settings()} == set(PROOFS)


@pytest.mark.parametrize("setting", sorted(PROOFS))
def test_the_proof_is_there_and_uses_the_setting(setting: str) -> None:
    path, _, test = PROOFS[setting].partition("::")
    assert test in sources(path), f"{path} has no test {test}"
    parts = setting.split(".")
    word = parts[-2] if parts[-1] == "enabled" and len(parts) > 2 else parts[-1]
    assert word in sources(path)[test]


def test_a_strategys_options() -> None:
    def held_ms(wait_ms: float) -> float:
        rig = Rig(scheduling__strategy="batch_optimized", scheduling__options={"max_wait_ms": wait_ms}, replicas=[])
        return float(rig.engine._room.scheduler.hold_until(_Batch(), 1.0)) * 1e3 - 1000.0

    assert held_ms(30.0) == pytest.approx(30.0)
    assert held_ms(5.0) == pytest.approx(5.0)


class _Batch:
    """One request that just came, in a call that could take eight."""

    size = 1
    limit = 8
    oldest_arrival = 1.0

    def deadline_window(self, now: float) -> float:
        return now + 10.0


def test_budgets_of_models_and_clients() -> None:
    config = InferentialConfig()
    config.models.known = {"m": ModelConfig(latency_budget_ms=300.0)}
    config.clients = {"special": ClientConfig(latency_budget_ms=70.0)}
    rig = Rig()
    rig.engine = Engine(config, ["m"], Numbers())
    rig.engine.replica_up(_replica(), rig.now)
    assert (rig.send(client="usual").expiry - rig.now) * 1e3 == pytest.approx(300.0)
    assert (rig.send(client="special").expiry - rig.now) * 1e3 == pytest.approx(70.0)


def test_a_models_batches_are_bounded() -> None:
    for bound, sizes in ((3, [3, 2]), (None, [5])):
        rig = Rig(
            replicas=[_replica(max_batch_size=8)], model__max_batch_size=bound, scheduling__batch_window="off",
            dispatch__staging=False,
        )  # fmt: skip
        call = rig.block()
        for i in range(5):
            rig.send(client=f"c{i}")
        got = []
        calls = rig.finish(call)
        while calls:
            got += [len(c.requests) for c in calls]
            calls = rig.finish(calls[0])
        assert got == sizes


def test_declared_times_are_believed_until_learned() -> None:
    rig = Rig(model__call_ms=20.0, model__item_ms=5.0)
    declared = rig.engine.health()["m"]["service_time"]
    assert (declared["call_ms"], declared["item_ms"]) == (20.0, 5.0)
    rig.learn(call_ms=2.0, calls=60)
    assert rig.engine.health()["m"]["service_time"]["call_ms"] < 10.0


def test_early_refusal() -> None:
    for early_refusal, status in (("off", None), ("predictive", Status.REJECTED)):
        rig = Rig(model__call_ms=50.0, scheduling__early_refusal=early_refusal)
        rig.block()
        request = rig.send(budget=60.0)  # 50 ms for the one that runs, 50 for itself
        assert rig.status(request) is status


def _replica(max_batch_size: int = 1) -> Replica:
    return Replica("r", "m", 1, max_batch_size)


def test_points_that_are_kept() -> None:
    config = InferentialConfig()
    config.metrics.ring_size = 7
    server = Server(config, models={"m": local(lambda obs: 0, inline=True)}, bind=ANY)
    for i in range(20):
        server.metrics.record("queue_depth", i)
    assert server.metrics.get_stats("queue_depth").count == 7


def test_prometheus() -> None:
    def scraped(server: Server, address: str) -> str:
        url = f"http://{address}:{server.prometheus_port}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            text: str = answer.read().decode()
        return text

    model = {"m": local(lambda obs: 0, inline=True)}
    config = InferentialConfig()
    with Server(config, models=model, bind=ANY).run_in_thread() as server:
        assert server.prometheus_port is None
    for label in (False, True):
        config.metrics.prometheus_port = 0
        config.metrics.prometheus_bind = "127.0.0.2"
        config.metrics.prometheus_client_label = label
        with Server(config, models=model, bind=ANY).run_in_thread() as server:
            server.metrics.record("e2e_latency_ms", 3.0, "m", "robot-7")
            text = scraped(server, "127.0.0.2")
            assert "inferential_e2e_latency_ms_count{" in text
            assert ("robot-7" in text) is label
            with pytest.raises(OSError, match="refused"):
                scraped(server, "127.0.0.1")
    with socket.create_server(("127.0.0.2", 0)) as taken:
        config.metrics.prometheus_port = taken.getsockname()[1]
        with (
            pytest.raises(Exception, match=r"metrics\.prometheus_port"),
            Server(config, models=model, bind=ANY).run_in_thread(),
        ):
            pass
