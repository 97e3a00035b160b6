"""The direct path, the server's end: replicas attach to a ROUTER socket and take calls from it (docs/deployments.md).

A plain socket on the event loop, drained in bursts, as in `transport` (docs/adr/0001 and 0002). Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

import zmq
import zmq.utils.monitor

from inferential.backends import link, unix_link
from inferential.backends.base import BackendEvents
from inferential.backends.link import pb
from inferential.config.schema import InferentialConfig
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Replica
from inferential.types import Body

logger = logging.getLogger("inferential.direct")

_NOBLOCK = int(zmq.NOBLOCK)
BURST = 256  # messages taken before the loop may do something else
CALLS_TOGETHER = 8  # share a message at most: the replica can begin with these while the next are decided
RESULT_BYTES = 64 * 1024 * 1024
"""What a frame of a replica's may have where clients' messages are bounded to less than a quarter of it."""
LOAD_INTERVAL_S = 0.25
"""How often replicas are told what waits for them."""
NOT_ATTACHED = "not attached: say hello first"
MAX_STRANGERS = 64
"""Connections to the Unix socket that have not said who they are."""
CLOSED_S = 0.5
"""How long after its Unix socket a replica's connection may end too before it is ended here."""
LAST_REPLICA_S = 1.5
"""How long the last replica of a model is kept when it wants to leave, for another to attach."""


class _Peer:
    """A connected replica."""

    __slots__ = (
        "attached",
        "calls",
        "draining",
        "fd",
        "hello",
        "leaving",
        "load",
        "nonce",
        "outbox",
        "outbox_frames",
        "routing_id",
        "unix",
        "unix_key",
        "zmq_calls",
    )

    def __init__(self, routing_id: bytes, fd: int, hello: Any) -> None:
        self.routing_id = routing_id
        self.fd = fd
        self.hello = hello
        self.nonce = link.nonce()
        self.attached = False
        self.leaving = False
        """It asked to get no more calls."""
        self.draining = False
        """It gets no more calls."""
        self.load = (0, 1)
        """What it was told last: requests that wait, replicas."""
        self.calls: set[int] = set()
        self.outbox: list[tuple[int, bytes]] = []
        """Calls that leave with the next message: their ids and headers."""
        self.outbox_frames: list[Any] = []
        self.unix_key = b""
        """What its connection to the Unix socket has to begin with."""
        self.unix: Any = None
        """Its link beside ZMQ, if there is one: the way of calls..."""
        self.zmq_calls: set[int] = set()
        """...unless some that were sent through ZMQ are not answered, which it would overtake."""


class DirectPath:
    """Announces replicas that attach, hands them calls, and notices at once when one is gone.

    A process that dies closes its connection; one that hangs as a whole fails ZMQ's heartbeats, which need no Python on
    either side, so that neither a long inference nor one that holds the GIL looks like death.
    """

    def __init__(self, config: InferentialConfig, models: Sequence[str], events: BackendEvents) -> None:
        self._config = config
        self._max_frame_bytes = max(4 * config.transport.max_message_bytes, RESULT_BYTES)
        self._models = tuple(models)
        self._events = events
        self._peers: dict[bytes, _Peer] = {}
        self._by_fd: dict[int, _Peer] = {}
        self._replicas: dict[str, _Peer] = {}
        self._awaited = 0  # calls that are not answered
        self._results: list[tuple[int, CallResult]] = []  # of this burst
        self._outboxes: list[_Peer] = []  # whose outbox has calls
        self._unix_name = ""
        self._unix_listener: Any = None
        self._strangers: dict[int, Any] = {}  # connections to it that have not said who they are, the oldest first
        self._unix_keys: dict[bytes, _Peer] = {}  # of replicas that have not connected to it
        self._sent = False  # calls, since it was last asked whether there is something to read
        self._reading = False
        self._again: asyncio.Handle | None = None
        self._check: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.server = secrets.token_hex(8)
        self._secret = secrets.token_hex(32)
        self._beat = 0
        self._remote = ""

    # --- life cycle ---

    def open(self) -> None:
        """Binds to loopback and begins to receive."""
        self._loop = asyncio.get_running_loop()
        self._context: Any = zmq.Context(io_threads=1)
        socket: Any = self._context.socket(zmq.ROUTER)
        self._socket = socket
        timeout_ms = self._config.dispatch.health_timeout_ms
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 10_000),  # calls are bounded by credits
            (zmq.RCVHWM, 10_000),
            (zmq.MAXMSGSIZE, self._max_frame_bytes),
            (zmq.HEARTBEAT_IVL, max(50, int(timeout_ms / 4))),
            (zmq.HEARTBEAT_TIMEOUT, max(100, int(timeout_ms * 3 / 4))),
        ):
            socket.setsockopt(option, value)
        self._monitor: Any = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        # A name in the kernel's own space: no port, no file, and large tensors cost half of what TCP takes for them.
        socket.bind(f"ipc://@inferential-{self.server}" if sys.platform == "linux" else "tcp://127.0.0.1:*")
        self._local = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop.add_reader(socket.getsockopt(zmq.FD), self._readable)
        self._loop.add_reader(self._monitor.getsockopt(zmq.FD), self._monitor_readable)
        self._check_soon()  # to ask for its address uses up the signal that somebody came meanwhile
        if sys.platform == "linux":
            self._unix_name = f"inferential-{self.server}-calls"
            self._unix_listener = unix_link.listen(self._unix_name)
            if self._unix_listener is not None:
                self._loop.add_reader(self._unix_listener, self._unix_arrived)
        self._timer = self._loop.call_later(LOAD_INTERVAL_S, self._tell_load)

    def close(self) -> None:
        """Closes the socket; replicas notice and forget this server."""
        if self._timer is not None:
            self._timer.cancel()
        for handle in (self._again, self._check):
            if handle is not None:
                handle.cancel()
        self._stop_listening()
        for peer in self._peers.values():
            self._close_unix(peer)
        self._loop.remove_reader(self._socket.getsockopt(zmq.FD))
        self._loop.remove_reader(self._monitor.getsockopt(zmq.FD))
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()
        self._peers.clear()
        self._replicas.clear()

    def bind_node(self, ip: str) -> None:
        """Binds to the address of this node too: the cluster has others."""
        if not self._remote:
            self._socket.bind(f"tcp://{ip}:*")
            self._remote = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._check_soon()  # binding uses up the signal too

    def endpoint(self, node: str) -> link.Endpoint:
        """What replicas have to know; newer than the one before."""
        self._beat += 1
        return link.Endpoint(self.server, node, self._local, self._remote, list(self._models), self._secret, self._beat)

    # --- calls ---

    def serves(self, model: str) -> bool:
        """Whether replicas of the model are attached."""
        return any(p.hello.model == model for p in self._replicas.values())

    def dispatch(self, call: Call) -> None:
        """See Backend. The client's frames go as they came."""
        peer = self._replicas.get(call.replica.id)
        if peer is None or peer.draining:
            self._events.failed(call.id, CallError(f"replica {call.replica.id} is gone"))
            return
        now = time.monotonic()
        message = pb.ToReplica()
        sent = message.calls.add()  # field by field, as protobuf is slower with keywords
        sent.id = call.id
        frames: list[Any] = []
        for request in call.requests:
            item = sent.items.add()
            item.envelope = bytes(request.frames[0])
            if request.expiry < 1e12:
                item.remaining_ms = max((request.expiry - now) * 1e3, 0.001)
            if request.attempt:
                item.attempt = request.attempt
            link.put_payload(item, request.frames[1:], frames)
        header = message.SerializeToString()
        peer.calls.add(call.id)
        self._awaited += 1
        if not peer.outbox:
            self._outboxes.append(peer)
        peer.outbox.append((call.id, header))
        peer.outbox_frames += frames
        if frames or len(peer.outbox) >= CALLS_TOGETHER:
            self._outboxes.remove(peer)
            self._post(peer)

    def flushed(self) -> None:
        """See Backend."""
        outboxes, self._outboxes = self._outboxes, []
        for peer in outboxes:
            self._post(peer)
        if self._sent and not self._reading:
            self._check_readable()

    def _post(self, peer: _Peer) -> None:
        """Sends a replica the calls in its outbox."""
        calls, frames = peer.outbox, peer.outbox_frames
        peer.outbox, peer.outbox_frames = [], []
        # Protobuf reads messages one after the other as one message with all their repeated fields.
        header = b"".join([header for _, header in calls])
        if peer.unix is not None:
            if not peer.zmq_calls and peer.unix.send(header, frames):
                return
            peer.unix.tell()
        peer.zmq_calls.update([call_id for call_id, _ in calls])
        self._sent = True
        try:
            link.send(self._socket, header, frames, peer.routing_id)
        except zmq.ZMQError as e:
            error = CallError(f"cannot reach replica {peer.hello.replica}: {e.strerror}")
            for call_id, _ in calls:
                peer.zmq_calls.discard(call_id)
                if call_id in peer.calls:
                    peer.calls.discard(call_id)
                    self._awaited -= 1
                    self._events.failed(call_id, error)

    def abandon(self, call: Call) -> None:
        """See Backend."""
        peer = self._replicas.get(call.replica.id)
        if peer is not None and call.id in peer.calls:
            self._say(peer, pb.ToReplica(cancel=pb.Cancel(id=call.id)))

    def _say(self, peer: _Peer, message: Any) -> None:
        # A peer that cannot be reached is gone; the monitor says so too.
        with contextlib.suppress(zmq.ZMQError):
            link.send(self._socket, message.SerializeToString(), (), peer.routing_id)
        self._check_soon()

    def _tell_load(self) -> None:
        self._timer = self._loop.call_later(LOAD_INTERVAL_S, self._tell_load)
        replicas: dict[str, int] = {}
        for peer in self._replicas.values():
            if not peer.draining:
                replicas[peer.hello.model] = replicas.get(peer.hello.model, 0) + 1
        waiting = {model: self._events.waiting(model) for model in replicas}
        for peer in list(self._replicas.values()):
            load = (0, 1) if peer.draining else (waiting[peer.hello.model], replicas[peer.hello.model])
            if load != peer.load:
                peer.load = load
                self._say(peer, pb.ToReplica(load=pb.Load(waiting=load[0], replicas=load[1])))

    # --- receiving ---

    def _readable(self) -> None:
        # The descriptor signals a change, not a state: read until there is nothing, or come back by ourselves.
        if self._again is not None:
            self._again.cancel()
            self._again = None
        socket = self._socket
        more = False
        self._reading = True
        try:
            for _ in range(BURST):
                routing_id = socket.recv(_NOBLOCK)
                if routing_id in self._peers:
                    self._received(routing_id, -1, *link.receive(socket))
                else:
                    first = frame = socket.recv(_NOBLOCK, False)
                    frames = []
                    while frame.more:
                        frame = socket.recv(_NOBLOCK, False)
                        frames.append(frame)
                    self._received(routing_id, int(first.get(zmq.SRCFD)), first.bytes, frames)
                # To find out by an exception that there is no more costs two system calls. Where hardly any answer is
                # awaited the check below does that, after what has come was handed over.
                if self._awaited < 2:
                    break
            else:
                more = True
        except zmq.Again:
            pass
        finally:
            if more:
                self._again = self._loop.call_soon(self._readable)
            try:
                self._hand_over()
            finally:
                self._reading = False
                self._check_readable()

    def _hand_over(self) -> None:
        """Reports what a burst brought, all at once."""
        results, self._results = self._results, []
        if results:
            self._events.completed_all(results)

    def _check_soon(self) -> None:
        """To be called after sending: a send may use up the signal that there is something to read."""
        if self._check is None:
            self._check = self._loop.call_soon(self._check_readable)

    def _check_readable(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None
        self._sent = False
        if self._again is None and link.readable(self._socket):
            self._again = self._loop.call_soon(self._readable)

    def _received(self, routing_id: bytes, fd: int, header: bytes, frames: list[Any]) -> None:
        try:
            message = pb.ToServer.FromString(header)
        except Exception:  # not one of ours
            return
        peer = self._peers.get(routing_id)
        if message.results and peer is not None and peer.attached:
            self._take(peer, message.results, frames)
            return
        kind = message.WhichOneof("kind")
        if kind == "hello":
            self._hello(routing_id, fd if peer is None else peer.fd, message.hello)
        elif peer is None:
            stranger = pb.ToReplica(refused=pb.Refused(reason=NOT_ATTACHED))
            with contextlib.suppress(zmq.ZMQError):
                link.send(self._socket, stranger.SerializeToString(), (), routing_id)
        elif kind == "proof":
            self._proof(peer, message.proof.proof)
        elif not peer.attached:
            return
        elif kind == "credits":
            peer.hello.credits = message.credits.credits
            if not peer.draining:
                self._announce(peer)
        elif kind == "drain":
            self._drain(peer, message.drain.grace_ms / 1e3)
        elif kind == "goodbye":
            self._say(peer, pb.ToReplica(farewell=pb.Farewell()))
            self._gone(peer, "it left")

    def _drain(self, peer: _Peer, grace_s: float) -> None:
        peer.leaving = True
        if any(not p.leaving and p.hello.model == peer.hello.model for p in self._replicas.values()):
            self._let_go(peer)
        else:
            # Serve ends the last old replica when a new one runs, which may be a moment before that one has attached.
            self._loop.call_later(min(LAST_REPLICA_S, grace_s / 2), self._let_go, peer)

    def _let_go(self, peer: _Peer) -> None:
        """The replica gets no more calls."""
        if peer.draining or self._replicas.get(peer.hello.replica) is not peer:
            return
        peer.draining = True
        self._events.replica_down(peer.hello.model, peer.hello.replica, "it drains", drained=True)
        self._say(peer, pb.ToReplica(drained=pb.Drained()))

    def _take(self, peer: _Peer, results: Sequence[Any], frames: list[Any]) -> None:
        at = 0
        for result in results:
            at = self._result(peer, result, frames, at)

    def _result(self, peer: _Peer, result: Any, frames: list[Any], at: int) -> int:
        """Where the frames of the next one begin."""
        items: list[Body | ItemError] = []
        for item in result.items:
            if item.failed:
                items.append(ItemError(item.error, expired=item.expired))
            else:
                payload, at = link.take_payload(item, frames, at)
                items.append(Body(item.envelope, payload))
        peer.zmq_calls.discard(result.id)
        if result.id in peer.calls:  # else the call was given up with an earlier link
            peer.calls.discard(result.id)
            self._awaited -= 1
            ahead_s = result.ahead_ms / 1e3 if result.HasField("ahead_ms") else None
            self._results.append((result.id, CallResult(items, result.inference_ms / 1e3, ahead_s)))
        return at

    # --- the Unix socket: no thread of libzmq's between its ends ---

    def _unix_arrived(self) -> None:
        try:
            for _ in range(2 * unix_link.BACKLOG):  # all that were there; whoever connects without end has to wait
                connection, _ = self._unix_listener.accept()
                connection.setblocking(False)
                self._strangers[connection.fileno()] = connection
                self._loop.add_reader(connection, self._unix_introduced, connection)
                self._unix_introduced(connection)  # mostly it has said so by now
                if len(self._strangers) > MAX_STRANGERS:
                    self._close_stranger(next(iter(self._strangers.values())))
        except BlockingIOError:
            pass
        except OSError as e:  # no more descriptors, most likely: replicas have their other link
            logger.warning("no more Unix sockets for replicas: %s", e)
            self._stop_listening()

    def _unix_introduced(self, connection: Any) -> None:
        key, made = unix_link.introduced(connection, self._unix_keys.__contains__)
        if key is None:
            return
        if made is None:
            self._close_stranger(connection)
            return
        del self._strangers[connection.fileno()]
        self._loop.remove_reader(connection)
        peer = self._unix_keys.pop(key)
        self._loop.add_reader(connection, self._unix_readable, peer)
        peer.unix = made

    def _unix_readable(self, peer: _Peer) -> None:
        self._reading = True
        try:
            self._read_unix(peer)
        finally:
            try:
                self._hand_over()
            finally:
                self._reading = False
                if self._sent:
                    self._check_readable()

    def _read_last(self, peer: _Peer) -> None:
        """Reads all that a replica sent to the Unix socket before it went. It may have connected to it only just now."""
        if peer.unix_key in self._unix_keys:
            self._unix_arrived()
            for connection in list(self._strangers.values()):
                self._unix_introduced(connection)
        self._read_unix(peer)

    def _read_unix(self, peer: _Peer) -> None:
        """Reads results; all that are there while calls are not answered."""
        while peer.unix is not None:
            try:
                received = peer.unix.receive()
            except unix_link.LinkClosedError as e:
                # Its process has ended, which ZMQ will say too, or it will attach anew: nobody waits for what it had not read.
                self._close_unix(peer)
                self._loop.call_later(CLOSED_S, self._closed, peer, str(e))
                return
            if received is None:
                return
            message, frames = received
            self._take(peer, message.results, frames)
            if not self._awaited:
                return  # nothing more can come of use, and an attempt that fails costs an exception

    def _closed(self, peer: _Peer, reason: str) -> None:
        """Its Unix socket was closed a while ago."""
        if self._peers.get(peer.routing_id) is peer:
            self._gone(peer, reason)
            self._say(peer, pb.ToReplica(refused=pb.Refused(reason=NOT_ATTACHED)))

    def _close_unix(self, peer: _Peer) -> None:
        self._unix_keys.pop(peer.unix_key, None)
        unix, peer.unix = peer.unix, None
        if unix is not None:
            self._loop.remove_reader(unix.fileno())
            unix.close()

    def _close_stranger(self, connection: Any) -> None:
        del self._strangers[connection.fileno()]
        self._loop.remove_reader(connection)
        connection.close()

    def _stop_listening(self) -> None:
        listener, self._unix_listener = self._unix_listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()
        for connection in list(self._strangers.values()):
            self._close_stranger(connection)
        self._unix_keys.clear()

    # --- attaching ---

    def _hello(self, routing_id: bytes, fd: int, hello: Any) -> None:
        # Old disconnect events are read first, so that none of an earlier owner of this descriptor hits the new one.
        self._monitor_readable()
        old = self._peers.get(routing_id)
        if old is not None:
            self._gone(old, "it attached anew")
        peer = self._peers[routing_id] = _Peer(routing_id, fd, hello)
        self._by_fd[fd] = peer
        refusal = ""
        if hello.version != link.VERSION:
            refusal = f"server {self.server} speaks version {link.VERSION} of the backend protocol, not {hello.version}"
        elif hello.model not in self._models:
            refusal = f"server {self.server} does not serve model {hello.model!r}"
        elif not hello.credits or not hello.replica:
            refusal = "credits and replica must be given"
        if refusal:
            self._say(peer, pb.ToReplica(refused=pb.Refused(reason=refusal)))
            return
        answer = link.proof(self._secret, "server", hello.nonce, peer.nonce)
        self._say(
            peer,
            pb.ToReplica(
                challenge=pb.Challenge(version=link.VERSION, server=self.server, nonce=peer.nonce, proof=answer)
            ),
        )

    def _proof(self, peer: _Peer, given: bytes) -> None:
        hello = peer.hello
        wanted = link.proof(self._secret, "replica", peer.nonce, hello.nonce, hello.replica, hello.model)
        if peer.attached or not link.same(given, wanted):
            logger.warning(
                "replica %r of model %r does not know this server's secret: refused", hello.replica, hello.model
            )
            self._say(peer, pb.ToReplica(refused=pb.Refused(reason="the proof is wrong")))
            return
        old = self._replicas.get(hello.replica)
        if old is not None:
            self._gone(old, "it attached anew")
        peer.attached = True
        self._replicas[hello.replica] = peer
        welcome = pb.Welcome(max_frame_bytes=self._max_frame_bytes)
        if self._unix_listener is not None:
            peer.unix_key = link.nonce()
            self._unix_keys[peer.unix_key] = peer
            welcome.unix_name, welcome.unix_key = self._unix_name, peer.unix_key
        self._say(peer, pb.ToReplica(welcome=welcome))
        logger.info("replica %s of model %s attached", hello.replica, hello.model)
        self._announce(peer)
        for other in list(self._replicas.values()):
            if other.leaving and other.hello.model == hello.model:
                self._let_go(other)

    def _announce(self, peer: _Peer) -> None:
        h = peer.hello
        self._events.replica_up(Replica(h.replica, h.model, h.credits, max(h.max_batch_size, 1), "direct"))

    def _monitor_readable(self) -> None:
        # All of them first: results that arrived before the end still count, but to read them may lead here again.
        gone: list[_Peer] = []
        with contextlib.suppress(zmq.Again):
            while True:
                event = zmq.utils.monitor.parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                peer = self._by_fd.pop(event["value"], None)
                if peer is not None:
                    gone.append(peer)
        for peer in gone:
            while link.readable(self._socket):
                self._readable()
            self._gone(peer, "its process or the link to it is gone")

    def _gone(self, peer: _Peer, reason: str) -> None:
        hello = peer.hello
        if self._replicas.get(hello.replica) is peer:
            self._read_last(peer)
            self._hand_over()
        self._close_unix(peer)
        self._awaited -= len(peer.calls)
        peer.calls.clear()
        if peer in self._outboxes:
            self._outboxes.remove(peer)
        peer.outbox, peer.outbox_frames = [], []
        if self._peers.get(peer.routing_id) is peer:
            del self._peers[peer.routing_id]
        if self._by_fd.get(peer.fd) is peer:
            del self._by_fd[peer.fd]
        if self._replicas.get(hello.replica) is peer:
            del self._replicas[hello.replica]
            logger.info("replica %s of model %s: %s", hello.replica, hello.model, reason)
            self._events.replica_down(hello.model, hello.replica, reason)
