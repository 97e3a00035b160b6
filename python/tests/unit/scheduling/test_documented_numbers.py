"""The numbers of docs/scheduling.md are what the code says, and the settings table has the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferential.config.schema import ClientConfig, InferentialConfig, ModelConfig
from inferential.scheduling.batching import batch_limit, enough, fits, reserve_limit, worth_waiting
from inferential.scheduling.fairness import FairQueue, GuaranteedShare
from inferential.scheduling.order import Weights, find_policy
from inferential.scheduling.phase import PARTS, Phases, crowded
from inferential.scheduling.request import Request
from inferential.tracking.cadence import Cadence
from inferential.tracking.clients import Stream
from inferential.types import Observation

PAGE = (Path(__file__).parents[4] / "docs" / "scheduling.md").read_text()
CALL, ITEM = 0.010, 0.0005


def table(first_cell: str) -> list[list[str]]:
    """The rows, header first, of the table whose header begins with this cell."""
    rows: list[list[str]] = []
    for line in PAGE.splitlines():
        if line.startswith(f"| {first_cell} |") or rows:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows, f"docs/scheduling.md has no table {first_cell!r}"
    return [row for row in rows if not set(row[0]) <= {"-"}]


@pytest.mark.parametrize("row", table("arrival ms")[1:], ids=" ".join)
def test_order_keys(row):
    arrival, budget, steps, step, urgency, overdue, key = (None if cell == "-" else float(cell) for cell in row)
    request = Request(b"", Observation("c", "t", "m", urgency=urgency), (), 0, arrival / 1e3)
    request.expiry = (arrival + budget) / 1e3
    if steps is not None:
        request.dry_at = (arrival + steps * step) / 1e3
    weights = Weights.of(InferentialConfig().scheduling)
    assert find_policy("deadline")(request, overdue / 1e3, weights) * 1e3 == pytest.approx(key)


def pairs(first_cell):
    above, below = table(first_cell)
    return [(float(a), float(b)) for a, b in zip(above[1:], below[1:], strict=True)]


@pytest.mark.parametrize(("budget", "largest"), pairs("budget ms"))
def test_largest_batch(budget, largest):
    assert batch_limit(CALL, ITEM, budget / 1e3, 0.0, 1000) == largest


@pytest.mark.parametrize(("rate", "largest"), pairs("arrivals per s, budget 50 ms"))
def test_largest_batch_where_more_arrive(rate, largest):
    assert batch_limit(CALL, ITEM, 0.050, rate, 1000) == largest


def test_room_for_better_levels():
    budgets, rates, bursts, sizes = (row[1:] for row in table("budget of the better level ms"))
    for budget, rate, burst, size in zip(budgets, rates, bursts, sizes, strict=True):
        assert reserve_limit(CALL, ITEM, float(budget) / 1e3, 0.0, float(rate), float(burst), 1000) == int(size)


@pytest.mark.parametrize(("slack", "size"), pairs("slack ms"))
def test_what_fits(slack, size):
    assert fits(slack / 1e3, 0.0, CALL, ITEM, 64) == size


@pytest.mark.parametrize(("rate", "size"), pairs("arrivals per s and replica"))
def test_what_keeps_up(rate, size):
    assert enough(CALL, ITEM, rate) == pytest.approx(size)


@pytest.mark.parametrize("row", table("waiting")[1:], ids=" ".join)
def test_waiting(row):
    size, rate, expected, leaves = row
    arrivals = [] if expected == "-" else [float(ms) / 1e3 for ms in expected.split(",")]
    assert worth_waiting(0.0, int(size), 64, CALL, ITEM, float(rate), 1.0, arrivals) * 1e3 == pytest.approx(
        float(leaves)
    )


def test_guaranteed_share():
    _, levels = table("request")
    share = GuaranteedShare(0.25)
    went = []
    for _ in levels[1:]:
        level = share.best([0, 1])
        share.served(level, [0, 1])
        went.append(str(level))
    assert went == levels[1:]


def test_fair_shares():
    _, clients = table("turn")
    queue = FairQueue(1)
    streams = {"a": Stream("a", 1, 1.0), "b": Stream("b", 2, 2.0)}
    sent = 0

    def send(client):
        nonlocal sent
        sent += 1
        request = Request(b"", Observation(client, "t", "m"), (), 0, 0.0)
        request.sequence, request.stream, request.queued = sent, streams[client], True
        request.key = 0.0 if client == "a" else 1.0
        queue.push(request)

    for client in "ab" * 3:
        send(client)
    went = []
    for _ in clients[1:]:
        request = queue.first()
        request.queued = False
        queue.discard(request, True)
        went.append(request.observation.client_id)
        send(went[-1])
    assert went == clients[1:]


@pytest.mark.parametrize(("clients", "asked_from"), pairs("clients with this period"))
def test_what_is_crowded(clients, asked_from):
    assert crowded(int(asked_from), clients / PARTS)
    assert not crowded(int(asked_from) - 1, clients / PARTS)


def test_phase_shifts():
    phases = Phases()
    fleet = [Cadence() for _ in range(64)]
    for now in (0.0, 1.0, 2.0, 3.0):
        for cadence in fleet:
            cadence.arrived(now, 0.2)
            phases.arrived(cadence, now)
    shifts = [phases.shift_s(cadence, 3.05) * 1e3 for cadence in fleet]
    numbers, expected = table("asked as number")
    for number, ms in zip(numbers[1:], expected[1:], strict=True):
        assert shifts[int(number) - 1] == pytest.approx(0.0 if ms == "-" else float(ms), abs=0.05)


def defaults():
    found = []
    for names, default, _unit in table("setting")[1:]:
        paths = [n.strip().strip("`") for n in names.split(",")]
        values = default.split(",") if default.count(",") == names.count(",") else [default] * len(paths)
        found += [(paths[0], path, value.strip()) for path, value in zip(paths, values, strict=True)]
    return found


@pytest.mark.parametrize(("first", "path", "value"), defaults())
def test_defaults(first, path, value):
    if path == "scheduling.options":
        return
    if path.startswith("models.known.<id>") or first.startswith("models.known.<id>"):
        actual = getattr(ModelConfig(), path.rsplit(".", 1)[-1])
    elif path.startswith("clients.<id>"):
        actual = getattr(ClientConfig(), path.rsplit(".", 1)[-1])
    else:
        actual = InferentialConfig()
        for part in path.split("."):
            actual = getattr(actual, part)
    if actual is None:
        assert value in ("-", "what the deployment says")
    elif value.endswith("GiB"):
        assert actual == int(value.split()[0]) * 1024**3
    elif isinstance(actual, bool):
        assert value == str(actual).lower()
    elif isinstance(actual, int | float):
        assert float(value) == actual
    else:
        assert value == actual


def test_every_setting_of_scheduling_is_in_the_table():
    listed = {path for _, path, _ in defaults()}
    config = InferentialConfig()
    for section in ("scheduling", "queue", "cadence"):
        for name in type(getattr(config, section)).model_fields:
            path = f"{section}.{name}"
            assert path in listed or any(p.startswith(path + ".") for p in listed), path
    for name in ModelConfig.model_fields:
        assert f"models.known.<id>.{name}" in listed or name in listed, name
