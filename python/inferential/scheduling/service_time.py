"""How long a call takes, learned: `call_s + item_s x n`, the spread around it, and the overhead of reaching an idle replica."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from inferential.scheduling.batching import Quantile
from inferential.scheduling.request import INFINITY

_DECAY = 0.97  # weight of what was known, per call: some thirty calls are remembered, so a throttling GPU is followed within a second
_JUMP_DECAY = (
    0.5  # the same where a call took less than half of what was predicted: the model has warmed up, or recovered
)
_OUTLIER = 2.0  # a call counts for at most so many times its prediction: a stall of the machine says nothing about the next call
_RELAX = 0.7
_RESIDUALS = 64
_SLOPE_INERTIA = 1.0
_OVERHEADS = 15
_FIRST_LEAD_S = 0.0005
# Staged too early, a call leaves out who comes until its turn: each of these waits for a call more. Too late, and its replica is idle:
# everybody waits for that, in both of the calls that a request sees. So it pays to be in time more often than not, and not nearly always.
_LEAD_QUANTILE = 0.75
_LEAD_CAP = (
    0.15  # of an average call: what still waits here can be ordered, refused and batched, what is staged can not
)
_MARGIN_CAP = 0.25  # of the predicted time: past that a margin costs more requests than it saves
_TAIL_CAP = 0.5
_MARGIN_QUANTILE = 0.9
_TAIL_QUANTILE = 0.99


class ServiceTime:
    """Of one model. All times are seconds.

    A least-squares line through (batch size, time) in which each call counts 0.97 of its successor. Where all batches have one size
    the slope can't be known: it keeps its last value and the line moves up and down.
    """

    __slots__ = (
        "_leads",
        "_n",
        "_nn",
        "_ny",
        "_overheads",
        "_recent",
        "_sorted",
        "_w",
        "_y",
        "call_s",
        "item_s",
        "margin_s",
        "overhead_s",
        "samples",
        "tail_s",
    )

    def __init__(self, call_s: float = 0.0, item_s: float = 0.0) -> None:
        self.call_s = call_s
        self.item_s = item_s
        self.overhead_s = 0.0
        """What a call costs on top when its replica was idle, the median of the last 15: the way there and back."""
        self.margin_s = 0.0
        """90 % of the recent calls ended at most this much after the line's word; at most a quarter of the time predicted."""
        self.tail_s = 0.0
        """99 % did; at most half of the time predicted."""
        self.samples = 0
        self._leads = Quantile(_LEAD_QUANTILE, INFINITY)
        self._w = self._n = self._nn = self._y = self._ny = 0.0
        # A few zeros to begin with: the very first calls, which may wait for much that is made once, say little.
        self._overheads: deque[float] = deque([0.0] * 3, maxlen=_OVERHEADS)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        if call_s or item_s:
            # The declared prior counts like two calls, of 1 and of 16 requests.
            for size in (1.0, 16.0):
                self._add(size, call_s + item_s * size)

    @property
    def known(self) -> bool:
        """Whether there is anything to predict from."""
        return self._w > 0.0

    @property
    def lead_known(self) -> bool:
        """Whether a staged call has told how early it was: the others alone say too little, most of all where calls are quick."""
        return self._leads.value != INFINITY

    def mean(self, n: int) -> float:
        """Predicted time of a call of `n` requests that follows another without a gap."""
        return self.call_s + self.item_s * n

    @property
    def lead_s(self) -> float:
        """How long before the predicted end of a call the next one is sent, so that it is there, decoded, three times out of four."""
        needed = self._leads.value
        if needed == INFINITY:
            return self.overhead_s + _FIRST_LEAD_S
        return max(0.5 * self.overhead_s, min(needed, self.overhead_s + _LEAD_CAP * self._y / self._w))

    def learn_lead(self, needed_s: float) -> None:
        """Counts how long before its predecessor's predicted end a call should have been sent, to be ready right at the real end."""
        self._leads.add(needed_s)

    def quantile(self, n: int, q: float) -> float:
        """The time that a share `q` of calls of `n` requests does not exceed."""
        residuals = self._sorted
        if not residuals:
            return self.mean(n)
        return self.mean(n) + residuals[min(len(residuals) - 1, int(q * len(residuals)))]

    def _add(self, n: float, elapsed_s: float, decay: float = _DECAY) -> None:
        self._w = self._w * decay + 1.0
        self._n = self._n * decay + n
        self._nn = self._nn * decay + n * n
        self._y = self._y * decay + elapsed_s
        self._ny = self._ny * decay + n * elapsed_s

    def learn(self, n: int, elapsed_s: float, *, from_idle: bool, inference_s: float, speed: float = 1.0) -> None:
        """Counts a call that ended.

        Args:
            n: its requests.
            elapsed_s: from its dispatch, or from the end of the call before it where that was later.
            from_idle: whether its replica was idle at its dispatch.
            inference_s: the model's own word on its execution; 0 where it gave none.
            speed: how its replica's times compare with the model's, as far as is known: what is usual for a slow one is no surprise.
        """
        if from_idle:
            known = self.overhead_s
            if 0.0 < inference_s < elapsed_s:
                overheads = self._overheads
                overheads.append(elapsed_s - inference_s)
                self.overhead_s = known = sorted(overheads)[(len(overheads) - 1) // 2]
            elapsed_s = elapsed_s - known if elapsed_s > known else 0.0
        decay = _DECAY
        if self.samples:
            # Judged by what was predicted, before this call moves the line.
            predicted = self.call_s + self.item_s * n
            compared = elapsed_s / speed
            self._residual(compared - predicted, predicted)
            if compared < 0.5 * predicted:
                decay = _JUMP_DECAY
            elif compared > _OUTLIER * predicted and self.samples > 8:
                elapsed_s = _OUTLIER * predicted * speed
        self.samples += 1
        self._add(n, elapsed_s, decay)
        w, sum_n, sum_y = self._w, self._n, self._y
        mean_n = sum_n / w
        mean_y = sum_y / w
        spread = self._nn - mean_n * sum_n
        together = self._ny - mean_n * sum_y
        slope = (together + _SLOPE_INERTIA * self.item_s) / (spread + _SLOPE_INERTIA)
        # A line through the origin is the steepest that makes sense, a level one the flattest.
        self.item_s = slope = min(max(0.0, slope), mean_y / mean_n)
        self.call_s = mean_y - slope * mean_n

    def relax(self) -> None:
        """Predicts less, and forgets the spread.

        A prediction that keeps a model idle is never corrected by what is seen; it is relaxed until a call runs again.
        """
        self.call_s *= _RELAX
        self.item_s *= _RELAX
        self.overhead_s *= _RELAX
        self._overheads = deque((overhead * _RELAX for overhead in self._overheads), maxlen=_OVERHEADS)
        self._y *= _RELAX
        self._ny *= _RELAX
        self.margin_s = self.tail_s = 0.0
        self._leads = Quantile(_LEAD_QUANTILE, INFINITY)
        self._recent.clear()
        self._sorted.clear()

    def _residual(self, value: float, predicted: float) -> None:
        recent, ordered = self._recent, self._sorted
        if len(recent) == _RESIDUALS:
            del ordered[bisect_left(ordered, recent.popleft())]
        recent.append(value)
        insort(ordered, value)
        count = len(ordered)
        margin = ordered[int(_MARGIN_QUANTILE * count)]
        tail = ordered[int(_TAIL_QUANTILE * count)]
        self.margin_s = max(0.0, min(margin, _MARGIN_CAP * predicted))
        self.tail_s = max(0.0, min(tail, _TAIL_CAP * predicted))
