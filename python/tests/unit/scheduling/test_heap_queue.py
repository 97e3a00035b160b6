"""Lazy deletion stays bounded; taking from a long queue does not scan it."""

from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferential.scheduling.deadline import DeadlineOrder
from inferential.scheduling.fairness import GuaranteedShare
from inferential.scheduling.heap import LazyHeap
from inferential.scheduling.queue import Load, RequestQueue
from inferential.scheduling.request import Request
from inferential.tracking.clients import Stream
from inferential.types import Observation


class Item:
    def __init__(self):
        self.alive = True


def test_garbage_is_bounded():
    heap = LazyHeap(attrgetter("alive"))
    items = [Item() for _ in range(10_000)]
    for i, item in enumerate(items):
        heap.push(i, i, item)
    for item in items[10:]:
        item.alive = False
        heap.discard()
    assert len(heap) <= 2 * 10 + 130
    assert heap.top()[2] is items[0]


def test_dead_ones_are_skipped():
    heap = LazyHeap(attrgetter("alive"))
    a, b = Item(), Item()
    heap.push(1, 1, a)
    heap.push(2, 2, b)
    a.alive = False
    heap.discard()
    assert heap.top()[2] is b
    assert heap.pop() is b
    assert heap.top() is None


def request(sequence, key, stream=None):
    r = Request(b"c", Observation("c", "t", "m", request_id=sequence), (), 10, 0.0)
    r.sequence, r.key, r.expiry, r.stream = sequence, key, key, stream
    return r


class Counted(float):
    """A key that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Counted.compared += 1
        return float.__lt__(self, other)


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("clients", [1, 1000])
def test_taking_from_100_000_is_no_scan(contended, clients):
    streams = [Stream(str(i), i, 1.0) for i in range(clients)]
    order = DeadlineOrder(min_share=0.05, window_s=0.1)
    queue = RequestQueue(Load())
    n = 100_000
    for i in range(n):
        r = request(i, Counted(i * 7919 % n), streams[i % clients])
        queue.add(r)
        order.push(r)
    order.first(contended)
    Counted.compared = 0
    taken = []
    for _ in range(100):
        r = order.first(contended)
        queue.remove(r)
        order.discard(r, True)
        taken.append(float(r.key))
    assert Counted.compared / 100 < 6 * 17  # a few times log2(n), for the heaps it leaves
    assert taken == sorted(taken)
    if not contended or clients == 1:
        assert taken == [float(i) for i in range(100)]


def of_level(sequence, level, key):
    r = request(sequence, key)
    r.observation = Observation("c", "t", "m", request_id=sequence, priority=level)
    return r


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300), st.booleans()), min_size=1, max_size=60))
def test_levels_agree_with_a_scan(steps):
    """Whatever comes and leaves, by the top or elsewhere: who is first and who rivals are as a scan of all finds them."""
    window = 0.1
    order = DeadlineOrder(min_share=0.05, window_s=window)
    queue = RequestQueue(Load())
    waiting = []
    for number, (level, hundredths, leaves) in enumerate(steps):
        if leaves and waiting:
            gone = order.first(False) if level % 2 else waiting[level % len(waiting)]
            waiting.remove(gone)
            queue.remove(gone)
            order.discard(gone, bool(level % 3))
        else:
            r = of_level(number, level, hundredths / 100)
            waiting.append(r)
            queue.add(r)
            order.push(r)
        smallest = min((r.key for r in waiting), default=None)
        near = [r for r in waiting if any(o.level == r.level and o.key <= smallest + window for o in waiting)]
        expected = min(near, key=lambda r: (r.level, r.key, r.sequence), default=None)
        assert order.first(False) is expected
        for r in waiting:
            assert order.rivals(r) == sum(o.level <= r.level for o in waiting)


def test_a_thousand_levels_share_what_is_guaranteed():
    share = GuaranteedShare(0.5)
    waiting = list(range(1000))
    served = [0] * 1000
    for _ in range(3 * 2 * 999):
        level = share.best(waiting)
        share.served(level, waiting)
        served[level] += 1
    assert sum(served[1:]) == pytest.approx(sum(served) / 3, abs=1)  # each of the best owes half a request
    assert max(served[1:]) - min(served[1:]) <= 1


def test_what_goes_as_nothing_better_waits_has_had_its_turn():
    share = GuaranteedShare(0.5)
    for _ in range(5):
        share.served(0, [0, 1])
    for _ in range(2):
        share.served(1, [1])
    assert share.best([0, 1]) == 0


def test_a_level_that_empties_saves_nothing_up():
    share = GuaranteedShare(0.5)
    for _ in range(5):
        share.served(0, [0, 1])
    assert share.best([0, 1]) == 1
    share.emptied(0, [1])  # the lower one still waits
    assert share.best([0, 1]) == 1
    share.emptied(1, [0])
    assert share.best([0, 1]) == 0


def test_a_queues_books():
    load = Load()
    queue = RequestQueue(load)
    three = [request(i, 10.0 - i) for i in range(3)]
    for r in three:
        queue.add(r)
    assert (len(queue), queue.size_bytes, load.requests, load.size_bytes) == (3, 30, 3, 30)
    assert queue.oldest() is three[0]
    assert queue.first_to_expire() is three[2]
    queue.remove(three[2])
    assert queue.first_to_expire() is three[1]
    queue.remove(three[0])
    assert queue.oldest() is three[1]
    assert list(queue) == [three[1]]
    queue.remove(three[1])
    assert (len(queue), load.requests, load.size_bytes, queue.oldest()) == (0, 0, 0, None)
