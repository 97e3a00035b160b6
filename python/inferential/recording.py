"""Records what goes through a server as MCAP, and reads it back (docs/recording.md).

A recording holds the clients' own messages, every input of the engine and every decision it made. The engine reads no
clock and does no I/O, so its inputs make the same decisions again: that is what `replay` does, and checks.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from inferential._proto.inferential.recording.v1 import recording_pb2 as pb
from inferential._proto.inferential.v1 import inferential_pb2 as wire_pb
from inferential._version import __version__
from inferential.config.load import validated
from inferential.config.schema import InferentialConfig
from inferential.errors import ConfigError, InferentialError, MissingDependencyError, describe
from inferential.scheduling.request import Call, CallError, CallResult, ItemError, Outcome, Replica, Request
from inferential.types import Buffer

if TYPE_CHECKING:
    from inferential.engine import Engine

INPUTS = "/engine/inputs"
DECISIONS = "/engine/decisions"
MOST_WAITING = 100_000
MOST_WAITING_BYTES = 256 * 1024 * 1024

logger = logging.getLogger("inferential.recording")


class RecordingError(InferentialError):
    """A file is no recording of this package, or not a whole one."""


class Recorder:
    """Writes a recording on a thread of its own, so that the disk never holds up the server.

    If the disk falls more than MOST_WAITING messages or MOST_WAITING_BYTES behind, messages are dropped and counted in `dropped`; the
    file then says that it is not whole, and replay refuses it. Methods are called from the server's event loop only.
    """

    def __init__(self, path: Path, *, config_json: str, models: Sequence[str], payloads: bool = False) -> None:
        """Args: `path` is overwritten; `payloads` writes the tensors' bytes too, not only where they lay."""
        try:
            from mcap.writer import Writer
            from mcap_protobuf.schema import build_file_descriptor_set
        except ImportError:
            raise MissingDependencyError("recording needs MCAP: pip install 'inferential[record]'") from None
        self.path = path
        self.dropped = 0
        self._payloads = payloads
        # A message's log time is the wall clock, in step with the monotonic one the engine is given.
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()
        try:
            self._file = path.open("wb")
        except OSError as e:
            raise ConfigError(f"record: cannot write {str(path)!r}: {e.strerror}") from None
        self._writer = Writer(self._file)
        self._writer.start(profile="", library=f"inferential {__version__}")
        self._writer.add_metadata(
            "inferential", {"version": __version__, "config": config_json, "models": json.dumps(list(models))}
        )
        self._failed = False
        self._given_bytes = 0  # counted by who gives
        self._taken_bytes = 0  # counted by the thread that takes
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._describe: Callable[[Any], Any] = build_file_descriptor_set
        self._queue: queue.SimpleQueue[tuple[str, type[Any], float, bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inferential-recorder", daemon=True)
        self._thread.start()

    def observation(self, now: float, request: Request) -> None:
        """An observation as it was received; `input_submit` follows."""
        topic = f"/observations/{request.observation.model_id}"
        self._put(topic, wire_pb.Observation, now, bytes(memoryview(request.frames[0])))
        if self._payloads:
            self._put_payload(f"/payloads{topic}", now, request.frames[1:])

    def reply(self, now: float, model: str, frames: Sequence[Buffer]) -> None:
        """A reply as it is sent: the empty frame, the envelope, the payload."""
        topic = f"/replies/{model}"
        self._put(topic, wire_pb.ModelResponse, now, bytes(memoryview(frames[1])))
        if self._payloads:
            self._put_payload(f"/payloads{topic}", now, frames[2:])

    def input(self, message: pb.Input) -> None:
        """One call into the engine."""
        self._put(INPUTS, pb.Input, message.now_s, message.SerializeToString())

    def decision(self, message: pb.Decision) -> None:
        """One decision of the engine."""
        self._put(DECISIONS, pb.Decision, message.now_s, message.SerializeToString())

    def close(self) -> None:
        """Writes what is left and closes the file; at most as long as the disk takes."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _put_payload(self, topic: str, now: float, frames: Sequence[Buffer]) -> None:
        payload = pb.Payload(frames=[bytes(memoryview(f)) for f in frames])
        self._put(topic, pb.Payload, now, payload.SerializeToString())

    def _put(self, topic: str, schema: type[Any], now: float, data: bytes) -> None:
        waiting_bytes = self._given_bytes - self._taken_bytes
        if self._failed or self._queue.qsize() >= MOST_WAITING or waiting_bytes >= MOST_WAITING_BYTES:
            self.dropped += 1
            return
        self._given_bytes += len(data)
        self._queue.put((topic, schema, now, data))

    def _run(self) -> None:
        try:
            with self._file:
                self._write()
        except Exception:  # most often the disk is full
            self._failed = True
            logger.exception("recording: %s cannot be written; nothing more is recorded", self._file.name)
            while not self._queue.empty():
                self._queue.get()
                self.dropped += 1

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            topic, schema, now, data = item
            self._taken_bytes += len(data)
            channel = self._channels.get(topic)
            if channel is None:
                channel = self._channels[topic] = self._writer.register_channel(topic, "protobuf", self._schema(schema))
            at = int(now * 1e9) + self._wall_offset_ns
            self._writer.add_message(channel, at, data, at)
        self._writer.add_metadata("inferential.end", {"dropped": str(self.dropped)})
        self._writer.finish()

    def _schema(self, message: type[Any]) -> int:
        name = message.DESCRIPTOR.full_name
        if name not in self._schemas:
            descriptors = self._describe(message).SerializeToString()
            self._schemas[name] = self._writer.register_schema(name, "protobuf", descriptors)
        return self._schemas[name]


class RecordingEngine:
    """An engine that writes down its inputs and decisions. Everything else is the engine's own."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self._now = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _input(self, now: float, **kind: Any) -> None:
        self._now = now
        self._recorder.input(pb.Input(now_s=now, **kind))

    def replica_up(self, replica: Replica, now: float) -> None:
        """See Engine."""
        message = pb.Replica(
            id=replica.id,
            model=replica.model,
            slots=replica.slots,
            max_batch_size=replica.max_batch_size,
            path=replica.path,
        )
        self._input(now, replica_up=message)
        self._engine.replica_up(replica, now)

    def replica_down(self, model: str, replica_id: str, reason: str, now: float, *, drained: bool = False) -> None:
        """See Engine."""
        down = pb.ReplicaDown(model=model, replica=replica_id, reason=reason, drained=drained)
        self._input(now, replica_down=down)
        self._engine.replica_down(model, replica_id, reason, now, drained=drained)

    def submit(self, request: Request, now: float) -> None:
        """See Engine."""
        self._recorder.observation(now, request)
        submit = pb.Submit(
            connection=request.connection,
            arrival_s=request.arrival,
            size_bytes=request.size_bytes,
            frame_bytes=[memoryview(f).nbytes for f in request.frames[1:]],
        )
        self._input(now, submit=submit)
        self._engine.submit(request, now)

    def cancel(self, connection: bytes, request_id: int, now: float) -> bool:
        """See Engine."""
        self._input(now, cancel=pb.Request(connection=connection, request_id=request_id))
        return self._engine.cancel(connection, request_id, now)

    def disconnect(self, connection: bytes, now: float) -> None:
        """See Engine."""
        self._input(now, disconnect=connection)
        self._engine.disconnect(connection, now)

    def complete(self, call_id: int, result: CallResult, now: float) -> None:
        """See Engine."""
        items = [
            pb.Item(error=i.message or "failed", retryable=i.retryable) if isinstance(i, ItemError) else pb.Item()
            for i in result.items
        ]
        done = pb.Complete(call=call_id, inference_s=result.inference_s, ahead_s=result.ahead_s, items=items)
        self._input(now, complete=done)
        self._engine.complete(call_id, result, now)

    def fail(self, call_id: int, error: CallError, now: float) -> None:
        """See Engine."""
        fail = pb.Fail(call=call_id, message=error.message, retryable=error.retryable, unavailable=error.unavailable)
        self._input(now, fail=fail)
        self._engine.fail(call_id, error, now)

    def advance(self, now: float) -> None:
        """See Engine."""
        self._input(now, advance=pb.Advance())
        self._engine.advance(now)

    def use_scheduler(self, name: str, now: float, **options: Any) -> None:
        """See Engine."""
        self._input(now, use_scheduler=pb.UseScheduler(name=name, options_json=json.dumps(options)))
        self._engine.use_scheduler(name, now, **options)

    def drain(self, now: float) -> None:
        """See Engine."""
        self._input(now, drain=pb.Drain())
        self._engine.drain(now)

    def abort(self, now: float) -> None:
        """See Engine."""
        self._input(now, abort=pb.Abort())
        self._engine.abort(now)

    def _settle(self) -> None:
        # The engine decides when effects are taken, for all inputs since the last time: where that was is an input too.
        if self._engine.unsettled:
            self._input(self._now, settle=pb.Settle())

    def next_wakeup(self) -> float | None:
        """See Engine."""
        self._settle()
        return self._engine.next_wakeup()

    def take_calls(self) -> list[Call]:
        """See Engine."""
        self._settle()
        calls = self._engine.take_calls()
        for call in calls:
            self._recorder.decision(dispatch_decision(call, self._now))
        return calls

    def take_outcomes(self) -> list[Outcome]:
        """See Engine."""
        self._settle()
        outcomes = self._engine.take_outcomes()
        for outcome in outcomes:
            self._recorder.decision(outcome_decision(outcome, self._now))
        return outcomes

    def take_abandoned(self) -> list[Call]:
        """See Engine."""
        self._settle()
        calls = self._engine.take_abandoned()
        for call in calls:
            self._recorder.decision(pb.Decision(now_s=self._now, abandon=call.id))
        return calls


def _request(request: Request) -> pb.Request:
    return pb.Request(connection=request.connection, request_id=request.observation.request_id)


def dispatch_decision(call: Call, now: float) -> pb.Decision:
    """A call as a recording has it."""
    dispatch = pb.Dispatch(
        call=call.id, model=call.model, replica=call.replica.id, requests=[_request(r) for r in call.requests]
    )
    return pb.Decision(now_s=now, dispatch=dispatch)


def outcome_decision(outcome: Outcome, now: float) -> pb.Decision:
    """An outcome as a recording has it."""
    o = outcome.request.observation
    return pb.Decision(
        now_s=now,
        outcome=pb.Outcome(
            request=_request(outcome.request),
            model=o.model_id,
            client=o.client_id,
            status=int(outcome.status),
            reason=int(outcome.reason),
            error=outcome.error,
            queue_ms=outcome.queue_ms,
            inference_ms=outcome.inference_ms,
            e2e_ms=(now - outcome.request.arrival) * 1e3,
            batch_size=outcome.batch_size,
            replica=outcome.replica,
        ),
    )


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that was read: `config_json` and `models` as the server had them."""

    path: Path
    version: str
    config_json: str
    models: tuple[str, ...]

    def config(self) -> InferentialConfig:
        """The server's settings.

        Raises:
            RecordingError: they are none of this version's.
        """
        try:
            return validated(InferentialConfig, json.loads(self.config_json))
        except (ValueError, ConfigError) as e:
            raise RecordingError(
                f"{self.path}: the settings of inferential {self.version} in it are none of {__version__}: {e}"
            ) from None


class Visitor(Protocol):
    """Who reads a recording, message by message in the order they were written."""

    def observation(self, envelope: bytes) -> None:
        """An observation; the next input submits it."""

    def input(self, message: pb.Input) -> None:
        """One call into the engine."""

    def decision(self, message: pb.Decision) -> None:
        """One decision of the engine."""


def open_recording(path: Path) -> Recording:
    """Reads what the recording says of itself.

    Raises:
        RecordingError: it is no recording, not finished, or messages were dropped while it was written.
    """
    metadata: dict[str, dict[str, str]] = {}
    try:
        from mcap.reader import make_reader
    except ImportError:
        raise MissingDependencyError("reading a recording needs MCAP: pip install 'inferential[record]'") from None
    try:
        with path.open("rb") as f:
            for record in make_reader(f).iter_metadata():
                metadata[record.name] = dict(record.metadata)
    except OSError as e:
        raise RecordingError(f"{path}: cannot read it: {e}") from None
    except Exception as e:  # whatever a reader that trusts its file stumbles over
        raise RecordingError(f"{path}: not an MCAP file, or one that was not finished ({describe(e)})") from None
    if "inferential" not in metadata:
        raise RecordingError(f"{path}: an MCAP file, but not one that inferential wrote")
    if "inferential.end" not in metadata:
        raise RecordingError(f"{path}: the server did not finish it; only whole recordings can be replayed")
    about = metadata["inferential"]
    try:
        dropped = int(metadata["inferential.end"]["dropped"])
        recording = Recording(path, about["version"], about["config"], tuple(json.loads(about["models"])))
    except (KeyError, ValueError) as e:
        raise RecordingError(f"{path}: it is damaged ({describe(e)})") from None
    if dropped:
        raise RecordingError(f"{path}: {dropped} messages were dropped while it was written; it can't be replayed")
    return recording


def read_recording(recording: Recording, visitor: Visitor) -> None:
    """Shows every message to `visitor`, in the order they were written.

    Raises:
        RecordingError: the file is damaged.
    """
    for topic, message in _messages(recording.path):
        if topic == INPUTS:
            visitor.input(message)
        elif topic == DECISIONS:
            visitor.decision(message)
        else:
            visitor.observation(message)


def _messages(path: Path) -> Iterator[tuple[str, Any]]:
    from mcap.reader import NonSeekingReader

    with path.open("rb") as f:
        # Not sorted by time: several messages may share one, and the order of writing is the engine's.
        found = NonSeekingReader(f, validate_crcs=True).iter_messages(log_time_order=False)
        while True:
            try:
                entry = next(found, None)
                if entry is None:
                    return
                topic, data = entry[1].topic, entry[2].data
                if topic == INPUTS:
                    message: Any = pb.Input.FromString(data)
                elif topic == DECISIONS:
                    message = pb.Decision.FromString(data)
                elif topic.startswith("/observations/"):
                    message = data
                else:
                    continue
            except Exception as e:
                raise RecordingError(f"{path}: it is damaged ({describe(e)})") from None
            yield topic, message
