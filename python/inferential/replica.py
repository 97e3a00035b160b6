"""The direct path, the model's end: inside a Serve replica, takes calls from all servers that know this model.

Threads: one leads, that is, it does the I/O with all servers (while it sleeps, whoever has an answer sends it); one stands by; one looks
up in Ray which servers there are. An async model runs on Serve's event loop. A sync model has as many threads as calls may run, of which
the first is always preferred, and others that decode and encode while they run. A sync model without a warm_up that has been quick so far
is run by the leading thread itself, as handing a call to another thread and back costs more than such a model; where it takes longer than
5 ms after all, the thread that stands by takes over the sockets, so no inference ever stops the I/O.
Heartbeats are ZMQ's own and need none of these threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import zmq
import zmq.utils.monitor

from inferential import wire
from inferential.backends import cluster, link, unix_link
from inferential.backends.link import Endpoint, pb
from inferential.errors import describe
from inferential.model_call import Item, ModelCall, Prepared
from inferential.scheduling.request import INFINITY, CallResult, ItemError

logger = logging.getLogger("inferential.replica")

DISCOVERY_INTERVAL_S = 0.3
FORGET_AFTER_S = 30.0
"""A server whose key does not change and whose socket cannot be reached for this long is forgotten."""
FAREWELL_S = 1.0
TAKE_OVER_S = 0.005
QUICK_S = 0.0003
SLOW_SHARE = 0.2
"""A model of whose recent calls so many at most took longer than QUICK_S is run by the thread that leads."""
_SHARE_WEIGHT = 0.05
BURST = 64  # messages read from a server before calls are run
TOGETHER_BYTES = 16_384
"""Answers share a message until it has so many."""
SMALL_BYTES = 32_768
"""Results of no more than this are copied before the next call begins."""
MAX_FRAME_BYTES = 2**63 - 1
"""Of a server that has not told."""
_ENTRY_BYTES = 256  # what an entry of a result takes to encode, whatever its size, in bytes
_RELEVANT = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


@dataclass(frozen=True, slots=True)
class Identity:
    """Which replica this is."""

    replica: str
    model: str
    node: str


@dataclass(slots=True, eq=False)
class _Server:
    """The link to one server. Touched only by the thread that leads, or, while that one sleeps, by who sends an answer in its stead."""

    endpoint: Endpoint
    socket: Any
    monitor: Any
    nonce: bytes = b""
    signalled: bool = False
    """Its descriptor said that there may be messages."""
    unsure: bool = True
    """Something was sent since it was last asked whether there are messages, which may have used up that signal."""
    unix: Any = None
    """The link beside ZMQ, where the server is on this machine and has one: the way of calls and results."""
    unix_signalled: bool = False
    proved: bool = False
    """The server has been shown who this is: it attaches this replica, whose side of it is yet to hear so."""
    attached: bool = False
    credits: int = 0
    max_frame_bytes: int = MAX_FRAME_BYTES
    """It takes no longer frame."""
    drained: bool = False
    left: bool = False
    refused: str = ""
    waiting: int = 0
    replicas: int = 1
    jobs: dict[int, _Job] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Job:
    """A call on its way through this replica."""

    server: _Server
    id: int
    call: Any
    frames: Sequence[Any]
    received_at: float
    ready_at: float = 0.0
    """When it was decoded."""
    ahead_s: float | None = None
    """How long before the end of the call ahead of it that was."""
    cancelled: bool = False

    def follows(self, ended_at: float) -> None:
        """It is about to run in the place of one that was over then; 0: it is the first there."""
        if ended_at:
            self.ahead_s = ended_at - self.ready_at


_Waiting = tuple[_Job, Prepared | None, float]
"""A call for a model thread: decoded or not, and the seconds that took."""


@dataclass(slots=True, eq=False)
class _Lane:
    """A model thread."""

    index: int
    calls: queue.SimpleQueue[_Waiting | None] = field(default_factory=queue.SimpleQueue)
    idle: bool = False
    """It waits for a call; guarded by the mutex."""


class ModelThread:
    """A daemon thread that runs what it is given, one thing after the other. What raises is raised where it is waited for, and ends it."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], concurrent.futures.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Runs it next."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._jobs.put((job, done))
        return done

    def close(self) -> None:
        """Ends it after what it has been given."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(job())
            except BaseException as e:
                done.set_exception(e)
                return


_Gate = queue.SimpleQueue[float]


def _gate(places: int) -> _Gate:
    """Lets so many through at a time, each taking a place and putting it back; quicker than a Semaphore.

    A place is when the call that had it before was over; 0: none had.
    """
    gate: _Gate = queue.SimpleQueue()
    for _ in range(places):
        gate.put(0.0)
    return gate


class ReplicaLinks:
    """All links of one replica, and the calls that came over them.

    Args:
        model: how to call the user's object.
        identity: who we are.
        max_batch_size: requests that a call may have.
        max_ongoing: asked now and then: how many calls may run at the same time.
        loop: where an async model runs.
        thread: where the model was warmed up: the first thread that runs its calls; a model that was runs nowhere but in model threads.
        find_servers: the servers that there are, by id; blocks.
    """

    def __init__(
        self,
        model: ModelCall,
        identity: Identity,
        *,
        max_batch_size: int,
        max_ongoing: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        thread: ModelThread | None = None,
    ) -> None:
        self._model = model
        self._identity = identity
        self._max_batch_size = max_batch_size
        self._max_ongoing = max_ongoing
        self._loop = loop
        self._limit = max(1, max_ongoing())
        self._servers: dict[str, _Server] = {}
        self._links: tuple[_Server, ...] = ()  # the same
        self._commands: deque[Callable[[], None]] = deque()
        self._pending: deque[_Job] = deque()  # received, not yet given to the model
        self._finished: deque[tuple[_Job, bytes, list[Any]]] = deque()
        self._warm_thread = thread
        self._mutex = threading.Lock()  # guards the next four, and those of the model threads
        self._leader = 0  # ident of the thread that leads
        self._inline_since = 0.0  # when the leader began to run a call itself; 0: it does not
        self._armed = False  # whether the thread that stands by watches the leader
        self._standing_by = False
        self._guard = threading.Semaphore(0)
        self._slow_share = 1.0  # moving average
        self._asleep = False
        # Held by who uses the sockets while the leader sleeps, and by the leader to wake up.
        self._bedside = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._lanes: list[_Lane] = []
        self._ready: deque[_Waiting] = deque()  # for whichever model thread is idle first
        self._to_run = 0  # calls between the leader and the end of their run in a model thread
        # For the threads beside the model's, of which there are so many.
        self._beside: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._helpers = 0
        self._thread_gate = _gate(self._limit)
        self._loop_gate = asyncio.Semaphore(self._limit)
        self._loop_ended_at = 0.0  # when a run on the loop was over
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_hand = 0
        self._draining = False
        self._goodbye_at = INFINITY
        self._welcome_by = INFINITY
        self._closed = threading.Event()
        self._left: concurrent.futures.Future[None] = concurrent.futures.Future()

    # --- from other threads ---

    def start(self, ready: Callable[[], bool]) -> None:
        """Begins to look for servers once `ready` (asked in a thread, may block) says so."""
        for name in ("inferential-io-a", "inferential-io-b"):
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        threading.Thread(target=self._discover, args=(ready,), name="inferential-discovery", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether it has left all servers."""
        return self._closed.is_set()

    def ongoing(self) -> float | None:
        """Requests in hand and this replica's part of what waits at all servers; None where no server is attached."""
        servers = [s for s in list(self._servers.values()) if s.attached]
        if not servers:
            return None
        return self._in_hand + sum((s.waiting / max(s.replicas, 1) for s in servers), 0.0)

    async def drain(self, timeout_s: float) -> None:
        """Tells all servers, finishes what is in hand, and leaves."""
        self._command(lambda: self._begin_drain(timeout_s))
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._left), timeout_s)
        except asyncio.TimeoutError:
            logger.warning(
                "%s: still %d requests in hand after %.1f s", self._identity.replica, self._in_hand, timeout_s
            )
        finally:
            self._closed.set()
            self._wake()

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(BlockingIOError, OSError):  # full: it will wake up
                os.write(self._wake_write, b"\0")

    # --- which servers there are ---

    def _discover(self, ready: Callable[[], bool]) -> None:
        if not ready():
            self._closed.set()
            self._wake()
            return
        known: dict[str, tuple[Endpoint, float]] = {}  # and when its beat was last seen to grow
        failing = looked = False
        while not self._closed.wait(DISCOVERY_INTERVAL_S if looked else 0.0):
            looked = True
            try:
                names = {key.removeprefix(link.SERVERS) for key in cluster.keys(link.SERVERS)}
                now = time.monotonic()
                for name in names:
                    server = self._servers.get(name)
                    if name in known and server is not None and server.attached:
                        continue
                    data = cluster.get(link.SERVERS + name)
                    endpoint = Endpoint.from_json(data) if data else None
                    if endpoint is None:
                        continue
                    before = known.get(name)
                    if before is None or before[0].beat != endpoint.beat:
                        known[name] = (endpoint, now)
                    if self._identity.model in endpoint.models:
                        fresh = now - known[name][1] < FORGET_AFTER_S
                        if fresh and server is None:
                            self._command(lambda e=endpoint: self._open(e))  # type: ignore[misc]
                        elif not fresh and server is not None:
                            self._command(lambda n=name: self._close(n))  # type: ignore[misc]
                for name in set(known) - names:
                    del known[name]
                    self._command(lambda n=name: self._close_if_down(n))  # type: ignore[misc]
                failing = False
            except Exception as e:  # Ray's control plane is in trouble: the links stand
                if not failing:
                    logger.warning("cannot look for servers: %s", e)
                failing = True
            with contextlib.suppress(Exception):
                limit = max(1, self._max_ongoing())
                if limit != self._limit:
                    self._command(lambda n=limit: self._set_limit(n))  # type: ignore[misc]

    # --- leading and standing by ---

    def _serve(self) -> None:
        me = threading.get_ident()
        with self._mutex:
            first = not self._leader
            if first:
                self._leader = me
        if first:
            self._begin()
        while not self._closed.is_set():
            if self._leader != me:
                self._stand_by(me)
                continue
            try:
                self._turn()
            except Exception:  # never let one bad message end all links
                logger.exception("%s: error in the link to a server", self._identity.replica)
        self._guard.release()  # who stands by may go
        if self._leader == me:
            self._end()

    def _stand_by(self, me: int) -> None:
        """Waits until the leader is busy with a call for too long, then leads."""
        with self._mutex:
            self._standing_by = True
        self._guard.acquire()
        watching = True
        while watching and not self._closed.is_set():
            time.sleep(TAKE_OVER_S)
            with self._mutex:
                if not self._inline_since:
                    watching = self._armed = False
                elif time.monotonic() - self._inline_since > TAKE_OVER_S:
                    self._inline_since = 0.0
                    self._leader = me
                    watching = self._armed = self._standing_by = False

    def _begin(self) -> None:
        self._context = zmq.Context(io_threads=1)
        # The bare thing: what `selectors` puts around it takes longer than it does.
        self._poll = select.poll()
        self._readable: dict[int, Callable[[], None]] = {}
        self._watch(self._wake_read, self._woken)

    def _watch(self, fd: int, readable: Callable[[], None]) -> None:
        self._readable[fd] = readable
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._readable[fd]

    def _end(self) -> None:
        for name in list(self._servers):
            self._close(name)
        self._context.destroy(linger=200)
        for lane in self._lanes:
            lane.calls.put(None)
        if self._warm_thread is not None:
            self._warm_thread.close()
        for _ in range(self._helpers):
            self._beside.put(None)

    def _turn(self) -> None:
        """Does all that can be done now, then waits. Returns at once when another thread leads."""
        finished, commands, pending = self._finished, self._commands, self._pending
        again = False  # since the last poll
        while True:
            while commands:
                commands.popleft()()
            # A send may use up the signal that there is something to read: read until a round brings nothing.
            more = False
            for server in self._links:
                more = self._read(server, again) or more
            if not (more or pending or finished or any(s.unsure for s in self._links)):
                break
            again = True
            if pending:
                # Answers to what came together leave together, if that is soon: all ends of the link do less for each.
                until = time.monotonic() + QUICK_S
                while pending:
                    if not self._start(pending.popleft()):
                        return
                    if time.monotonic() > until:
                        break
            self._answer_all()
        if self._draining:
            self._try_to_leave()
        self._asleep = True
        ready: list[tuple[int, int]] = []
        try:
            if not (finished or commands or self._closed.is_set()):
                ready = self._poll.poll(100 if self._draining else 1000)
        finally:
            with self._bedside:
                self._asleep = False
        for fd, _ in ready:
            if fd in self._readable:  # one before it may have closed it
                self._readable[fd]()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _start(self, job: _Job) -> bool:
        """Gives a call to the model; False where this thread does not lead any more afterwards."""
        if self._model.is_async:
            self._loop.call_soon_threadsafe(self._spawn, job)
            return True
        quick = self._slow_share < SLOW_SHARE and self._warm_thread is None
        if quick and self._standing_by and self._to_run < self._limit:
            gate = self._thread_gate
            try:
                gate.get_nowait()
            except queue.Empty:
                pass
            else:
                return self._run_here(job, gate)
        with self._mutex:
            before = self._to_run
            self._to_run += 1
        try:
            if len(self._lanes) < min(before + 1, self._limit):
                self._add_lane()
            if not self._helpers or (self._helpers < self._limit and self._beside.qsize()):
                self._add_helper()
        except RuntimeError as e:  # there can be no more threads
            if not (self._lanes and self._helpers):
                self._ended()
                self._finished.append(self._encode_failure(job, e))
                return True
        if before < self._limit:
            self._offer((job, None, 0.0))
        else:  # it is decoded while those before it run
            self._beside.put(partial(self._decode, job))
        return True

    def _run_here(self, job: _Job, gate: _Gate) -> bool:
        started = time.monotonic()
        with self._mutex:
            self._inline_since = started
            if not self._armed:
                self._armed = True
                self._guard.release()
        try:
            try:
                items = self._items(job)
                if len(items) == 1 and not job.cancelled and items[0].deadline > started:
                    result = self._model.run(items)
                else:
                    prepared = self._model.prepare(items)
                    if self._still_wanted(job, prepared):
                        self._model.execute_sync(prepared)
                    result = self._model.finish(prepared)
            finally:
                gate.put(time.monotonic())
            answer = self._encode(job, result)
        except BaseException as e:
            answer = self._encode_failure(job, e)
        with self._mutex:
            leads = self._inline_since == started
            if leads:
                self._inline_since = 0.0
        self._learn(time.monotonic() - started)
        if leads:
            self._finished.append(answer)
        else:
            self._answered(answer)
        return leads

    def _learn(self, took_s: float) -> None:
        # The share of slow calls rather than their mean: one call that the machine held up says little of the model.
        self._slow_share += _SHARE_WEIGHT * ((took_s > QUICK_S) - self._slow_share)

    # --- links (whoever leads) ---

    def _open(self, endpoint: Endpoint) -> None:
        if self._draining or endpoint.server in self._servers:
            return
        address = endpoint.local if endpoint.node == self._identity.node else endpoint.remote
        if not address:
            return
        socket: Any = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.IMMEDIATE, 1),
            (zmq.LINGER, 200),
            (zmq.SNDHWM, 10_000),
            (zmq.RCVHWM, 10_000),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 500),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 5000),
        ):
            socket.setsockopt(option, value)
        server = _Server(endpoint, socket, socket.get_monitor_socket(_RELEVANT))

        def signalled() -> None:
            server.signalled = True

        self._watch(socket.getsockopt(zmq.FD), signalled)
        self._watch(server.monitor.getsockopt(zmq.FD), lambda: self._read_monitor(server))
        self._servers[endpoint.server] = server
        self._links = tuple(self._servers.values())
        socket.connect(address)
        self._read_monitor(server)

    def _close_if_down(self, name: str) -> None:
        server = self._servers.get(name)
        if server is not None and not server.attached:
            self._close(name)

    def _close(self, name: str) -> None:
        server = self._servers.pop(name, None)
        if server is None:
            return
        self._links = tuple(self._servers.values())
        self._detach(server)
        self._unwatch(server.socket.getsockopt(zmq.FD))
        self._unwatch(server.monitor.getsockopt(zmq.FD))
        server.socket.disable_monitor()
        server.monitor.close(linger=0)
        server.socket.close()

    def _detach(self, server: _Server) -> None:
        was = server.attached
        server.attached = server.proved = False
        self._close_unix(server)
        for job in server.jobs.values():
            job.cancelled = True  # the server gave them up when the link broke
        if was:
            self._divide()

    def _say(self, server: _Server, message: Any, frames: Sequence[Any] = ()) -> None:
        # A link that is down has nobody to tell: both sides begin anew when it is up.
        server.unsure = True
        with contextlib.suppress(zmq.Again):
            link.send(server.socket, message.SerializeToString(), frames)

    def _read_monitor(self, server: _Server) -> None:
        with contextlib.suppress(zmq.Again):
            while server.endpoint.server in self._servers:
                event = zmq.utils.monitor.parse_monitor_message(server.monitor.recv_multipart(zmq.NOBLOCK))
                if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._greet(server)
                elif event["event"] == zmq.EVENT_DISCONNECTED:
                    self._detach(server)

    def _greet(self, server: _Server) -> None:
        server.nonce = link.nonce()
        server.proved = False
        hello = pb.Hello(
            version=link.VERSION,
            replica=self._identity.replica,
            model=self._identity.model,
            credits=self._limit,
            max_batch_size=self._max_batch_size,
            nonce=server.nonce,
        )
        self._say(server, pb.ToServer(hello=hello))

    def _welcomed(self, server: _Server, welcome: Any) -> None:
        if not server.proved:
            return  # to an earlier Hello
        server.attached = True
        server.max_frame_bytes = welcome.max_frame_bytes or MAX_FRAME_BYTES
        server.waiting, server.replicas = 0, 1  # what it takes for granted that a replica knows
        server.credits = self._limit
        server.refused = ""
        self._divide()
        self._close_unix(server)
        if welcome.unix_name and server.endpoint.node == self._identity.node:
            self._open_unix(server, welcome.unix_name, welcome.unix_key)

    def _open_unix(self, server: _Server, name: str, key: bytes) -> None:
        server.unix = unix_link.connect(name, key)
        if server.unix is None:
            return

        def signalled() -> None:
            server.unix_signalled = True

        self._watch(server.unix.fileno(), signalled)

    def _close_unix(self, server: _Server) -> None:
        unix, server.unix = server.unix, None
        if unix is not None:
            self._unwatch(unix.fileno())
            unix.close()

    def _read_unix(self, server: _Server, all_of_it: bool) -> bool:
        """Reads a burst of calls; True where there may be more."""
        server.unix_signalled = False
        for _ in range(BURST):
            if server.unix is None:
                return False
            try:
                received = server.unix.receive()
            except unix_link.LinkClosedError as e:
                logger.info("%s: link to server %s: %s", self._identity.replica, server.endpoint.server, e)
                # The server is gone, which ZMQ will say too, or has forgotten this replica, though the connection stands.
                self._close_unix(server)
                if server.attached and not self._draining:
                    self._detach(server)
                    self._greet(server)
                return False
            if received is None:
                return False
            message, frames = received
            self._take(server, message.calls, frames)
            if self._in_hand <= 2 and not all_of_it:
                return False  # if there is more, the next poll says so
        return True

    def _read(self, server: _Server, unasked: bool) -> bool:
        """Reads a burst of messages; True where there may be more. `unasked`: no poll has told of what came last."""
        wanted = server.unix_signalled or unasked or self._in_hand > 2
        more = wanted and self._read_unix(server, False)
        return self._read_zmq(server) or more

    def _read_zmq(self, server: _Server) -> bool:
        socket = server.socket
        # To find out by an exception that there is nothing costs two system calls, to ask one.
        sure, server.signalled = server.signalled, False
        busy = self._in_hand > 2
        if not (sure or busy or (server.unsure and link.readable(socket))):
            server.unsure = False
            return False
        server.unsure = True
        try:
            for _ in range(BURST):
                header, frames = link.receive(socket)
                message = pb.ToReplica.FromString(header)
                while self._read_unix(server, True):
                    pass  # what was sent there before is there, and goes first
                if message.calls:
                    self._take(server, message.calls, frames)
                elif (kind := message.WhichOneof("kind")) == "load":
                    server.waiting, server.replicas = message.load.waiting, message.load.replicas
                elif kind == "cancel":
                    found = server.jobs.get(message.cancel.id)
                    if found is not None:
                        found.cancelled = True
                elif kind == "challenge":
                    self._prove(server, message.challenge)
                elif kind == "welcome":
                    self._welcomed(server, message.welcome)
                elif kind == "drained":
                    server.drained = True
                elif kind == "farewell":
                    server.left = True
                elif kind == "refused":
                    server.proved = False
                    self._refused(server, message.refused.reason)
                if not (busy or link.readable(socket)):
                    server.unsure = False
                    return False
        except zmq.Again:
            server.unsure = False
            return False
        return True

    def _take(self, server: _Server, calls: Sequence[Any], frames: list[Any]) -> None:
        now = time.monotonic()
        at = 0
        for call in calls:
            end = at
            for item in call.items:
                end += item.frames
            job = server.jobs[call.id] = _Job(server, call.id, call, frames[at:end], now)
            at = end
            self._in_hand += len(call.items)
            self._pending.append(job)

    def _refused(self, server: _Server, reason: str) -> None:
        if server.attached:  # it has forgotten this replica, though the connection stands
            self._detach(server)
            self._greet(server)
        elif reason != server.refused:
            server.refused = reason
            logger.warning("%s: not attached: %s", self._identity.replica, reason)

    def _prove(self, server: _Server, challenge: Any) -> None:
        secret = server.endpoint.secret
        if not link.same(challenge.proof, link.proof(secret, "server", server.nonce, challenge.nonce)):
            logger.warning(
                "%s: what answers at %s is not server %s",
                self._identity.replica,
                server.endpoint.local,
                server.endpoint.server,
            )
            return
        if self._draining:
            return  # it comes too late to be told of that
        server.proved = True
        me = self._identity
        answer = link.proof(secret, "replica", challenge.nonce, server.nonce, me.replica, me.model)
        self._say(server, pb.ToServer(proof=pb.Proof(proof=answer)))

    def _divide(self) -> None:
        """Divides the credits between the attached servers: each has one at least."""
        attached = [s for s in self._servers.values() if s.attached]
        for i, server in enumerate(attached):
            credits = max(1, self._limit // len(attached) + (i < self._limit % len(attached)))
            if credits != server.credits:
                server.credits = credits
                self._say(server, pb.ToServer(credits=pb.Credits(credits=credits)))

    def _set_limit(self, limit: int) -> None:
        # Calls that run keep the gate they came through; for a moment there may be more than the new limit.
        self._limit = limit
        self._thread_gate = _gate(limit)
        self._loop_gate = asyncio.Semaphore(limit)
        self._divide()

    def _answer_all(self) -> None:
        """Sends what is finished; answers to one server share a message where they are small."""
        finished = self._finished
        while finished:
            server = finished[0][0].server
            headers: list[bytes] = []
            frames: list[Any] = []
            size = 0
            while finished and not frames and size < TOGETHER_BYTES and finished[0][0].server is server:
                job, header, frames = finished.popleft()
                self._in_hand -= len(job.call.items)
                if server.jobs.pop(job.id, None) is job and server.attached:
                    headers.append(header)
                    size += len(header)
                else:  # the server has given the call up
                    frames = []
            if headers:
                # Protobuf reads messages one after the other as one message with all their repeated fields.
                header = b"".join(headers)
                if server.unix is not None:
                    if server.unix.send(header, frames):
                        continue
                    server.unix.tell()
                server.unsure = True
                try:
                    link.send(server.socket, header, frames)
                except zmq.Again:
                    logger.debug("%s: no link for the results of %d calls", self._identity.replica, len(headers))

    # --- leaving ---

    def _begin_drain(self, timeout_s: float) -> None:
        self._draining = True
        self._welcome_by = time.monotonic() + FAREWELL_S
        for server in self._servers.values():
            self._say(server, pb.ToServer(drain=pb.Drain(grace_ms=int(timeout_s * 1e3))))

    def _try_to_leave(self) -> None:
        attached = [s for s in self._servers.values() if s.attached]
        now = time.monotonic()
        if self._goodbye_at == INFINITY:
            # One that is about to say welcome may have sent calls right after it.
            if any(s.proved and not s.attached for s in self._servers.values()) and now < self._welcome_by:
                return
            if self._in_hand or not all(s.drained for s in attached):
                return
            self._goodbye_at = now
            for server in attached:
                self._say(server, pb.ToServer(goodbye=pb.Goodbye()))
        if all(s.left for s in attached) or now - self._goodbye_at > FAREWELL_S:
            self._closed.set()
            if not self._left.done():
                self._left.set_result(None)

    # --- the model ---

    def _add_lane(self) -> None:
        lane = _Lane(len(self._lanes))
        run = partial(self._run_calls, lane)
        if not self._lanes and self._warm_thread is not None:
            self._warm_thread.submit(run)
        else:
            threading.Thread(target=run, name=f"inferential-model-{lane.index}", daemon=True).start()
        self._lanes.append(lane)

    def _add_helper(self) -> None:
        threading.Thread(target=self._help, name=f"inferential-codec-{self._helpers}", daemon=True).start()
        self._helpers += 1

    def _offer(self, call: _Waiting) -> None:
        """Gives a call to the first model thread that is idle; it waits where none is. Those beyond a limit that was lowered get none."""
        with self._mutex:
            for lane in self._lanes[: self._limit]:
                if lane.idle:
                    lane.idle = False
                    break
            else:
                self._ready.append(call)
                return
        lane.calls.put(call)

    def _run_calls(self, lane: _Lane) -> None:
        """A model thread. What a framework keeps for each thread (plans of kernels, a graphics context) is found again by every call.

        The next call goes before the last one's results: a thread beside encodes those, so that the device is never idle for it.
        """
        ran: tuple[_Job, Prepared] | None = None
        while True:
            with self._mutex:
                call = self._ready.popleft() if self._ready and lane.index < self._limit else None
                lane.idle = call is None and ran is None
            if call is None:
                if ran is not None:
                    self._encode_results(*ran)
                    ran = None
                    continue
                call = lane.calls.get()
                if call is None:
                    return
            if ran is not None:
                self._beside.put(partial(self._encode_results, *ran))
            ran = self._run(*call)

    def _run(self, job: _Job, prepared: Prepared | None, decode_s: float) -> tuple[_Job, Prepared] | None:
        """Runs a call, and decodes it where that is yet to be done. None where no results are left to encode here.

        Small ones are copies, as the model may write to its arrays in the next call. What may take long to encode goes to a thread beside
        this one, whether or not there is a next call: one may come meanwhile.
        """
        try:
            if prepared is None:
                started = time.monotonic()
                prepared = self._prepare(job)
                decode_s = time.monotonic() - started
            gate = self._thread_gate
            job.follows(gate.get())  # waits only for a call that the leader runs, or where the limit was lowered
            try:
                if self._still_wanted(job, prepared):
                    self._model.execute_sync(prepared)
            finally:
                gate.put(time.monotonic())
            copies = _copies(prepared.results)
        except BaseException as e:  # even a SystemExit of the model must answer its call
            self._ended()
            self._answered(self._encode_failure(job, e))
            return None
        self._ended()
        self._learn(decode_s + prepared.inference_s)
        if copies is None:
            self._beside.put(partial(self._encode_results, job, prepared))
            return None
        prepared.results = copies
        return job, prepared

    def _ended(self) -> None:
        with self._mutex:
            self._to_run -= 1

    def _help(self) -> None:
        """A thread beside the model's: decodes calls while others run, and encodes results while the next ones do."""
        while (step := self._beside.get()) is not None:
            step()

    def _decode(self, job: _Job) -> None:
        started = time.monotonic()
        try:
            prepared = self._prepare(job)
        except BaseException as e:
            self._ended()
            self._answered(self._encode_failure(job, e))
        else:
            self._offer((job, prepared, time.monotonic() - started))

    def _encode_results(self, job: _Job, prepared: Prepared) -> None:
        try:
            answer = self._encode(job, self._model.finish(prepared))
        except BaseException as e:
            answer = self._encode_failure(job, e)
        self._answered(answer)

    def _answered(self, answer: tuple[_Job, bytes, list[Any]]) -> None:
        """Sends an answer, from whatever thread, if the leader sleeps: to wake it takes longer. Else the leader does, on its round."""
        self._finished.append(answer)
        if not self._asleep:
            return
        with self._bedside:
            if self._asleep and self._send_finished():
                return
        self._wake()

    def _send_finished(self) -> bool:
        """In the leader's stead; whether it may sleep on."""
        try:
            self._answer_all()
            # A send may use up the signal that there is something to read, for which the leader waits.
            return not (self._draining or any(s.unsure and link.readable(s.socket) for s in self._links))
        except Exception:  # as in `_serve`: the leader goes on with what is left
            logger.exception("%s: error in the link to a server", self._identity.replica)
            return False

    def _spawn(self, job: _Job) -> None:
        task = self._loop.create_task(self._run_async(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_async(self, job: _Job) -> None:
        try:
            prepared = self._prepare(job)
            async with self._loop_gate:
                job.follows(self._loop_ended_at)
                try:
                    if self._still_wanted(job, prepared):
                        await self._model.execute(prepared)
                finally:
                    self._loop_ended_at = time.monotonic()
            await asyncio.sleep(0)  # the next call begins before the results of this one are encoded
            answer = self._encode(job, self._model.finish(prepared))
        except BaseException as e:
            answer = self._encode_failure(job, e)
            if isinstance(e, asyncio.CancelledError):
                raise
        finally:
            self._answered(answer)

    def _prepare(self, job: _Job) -> Prepared:
        prepared = self._model.prepare(self._items(job))
        job.ready_at = time.monotonic()
        return prepared

    def _items(self, job: _Job) -> list[Item]:
        items = []
        at = 0
        for item in job.call.items:
            frames, at = link.take_payload(item, job.frames, at)
            deadline = job.received_at + item.remaining_ms / 1e3 if item.remaining_ms else INFINITY
            items.append(
                Item(wire.parse_observation(item.envelope, [link.size_bytes(f) for f in frames]), frames, deadline)
            )
        return items

    def _still_wanted(self, job: _Job, prepared: Prepared) -> bool:
        """Keeps work that nobody waits for, or that is too late, from the model."""
        now = time.monotonic()
        any_left = False
        for i, item in enumerate(prepared.items):
            if job.cancelled or item.deadline < now:
                why = "it was cancelled" if job.cancelled else "its deadline passed"
                error = ItemError(f"{why} before the model began with it", expired=not job.cancelled)
                prepared.observations[i] = prepared.results[i] = error
            else:
                any_left = True
        return any_left

    def _encode(self, job: _Job, result: CallResult) -> tuple[_Job, bytes, list[Any]]:
        message = pb.ToServer()
        sent = message.results.add()  # field by field, as protobuf is slower with keywords
        sent.id = job.id
        sent.inference_ms = result.inference_s * 1e3
        if job.ahead_s is not None:
            sent.ahead_ms = job.ahead_s * 1e3
        frames: list[Any] = []
        most = job.server.max_frame_bytes
        for item in result.items:
            if isinstance(item, ItemError):
                sent.items.add(failed=True, error=item.message, expired=item.expired)
            elif (longest := max(map(link.size_bytes, (item.envelope, *item.frames)))) > most:
                error = (
                    f"the result has a part of {longest} bytes, the server takes {most} (4 times its transport.max_message_bytes, "
                    "at least 64 MiB)"
                )
                sent.items.add(failed=True, error=error)
            else:
                answered = sent.items.add()
                answered.envelope = item.envelope
                link.put_payload(answered, item.frames, frames)
        return job, message.SerializeToString(), frames

    def _encode_failure(self, job: _Job, error: BaseException) -> tuple[_Job, bytes, list[Any]]:
        logger.error("%s: a call failed", self._identity.replica, exc_info=error)
        return self._encode(job, CallResult([ItemError(describe(error))] * len(job.call.items), 0.0))


def _copies(results: Sequence[Any]) -> list[Any] | None:
    """Copies of results, where they are small and have none but numpy's arrays and strings; else None."""
    size = 0
    copies: list[Any] = []
    for result in results:
        named = type(result) is dict
        copy: dict[Any, Any] = {}
        for key, value in result.items() if named else (("", result),):
            if type(key) is not str:
                return None
            size += _ENTRY_BYTES + len(key)
            if type(value) is np.ndarray and not value.dtype.hasobject:
                size += value.nbytes
            elif type(value) is str:
                size += len(value)
            elif type(value) is not ItemError:
                return None
            if size > SMALL_BYTES:
                return None
            copy[key] = value.copy() if type(value) is np.ndarray else value
        copies.append(copy if named else copy[""])
    return copies
